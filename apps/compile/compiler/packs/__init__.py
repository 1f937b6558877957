"""The built-in buildpacks, a module each, with `detect`, `compile` and `release`."""
