"""The slug compiler. Standard library only, so that its own slug is this folder, packed.

`build` is a build on the platform (bin/build), `local` one on a folder (bin/compile); both call `compilation`.
"""

BUILDPACK_VERSION = "1"
"""The version of the built-in buildpacks, as a build's result gives it. It grows when a slug's contents change."""
