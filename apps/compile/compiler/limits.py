"""The limits of a build, in one place. Sizes in bytes, times in seconds."""

MEGABYTE = 1_000_000

SOURCE_TARBALL = 500 * MEGABYTE  # a larger source is refused before it is all read
SOURCE_UNPACKED = 2_000 * MEGABYTE  # what it may unpack to: a decompression bomb stops here
SOURCE_MEMBERS = 100_000
SOURCE_HEADER = 8 * MEGABYTE  # one read of tarfile for a member's header, at most
SLUG = 500 * MEGABYTE  # as Heroku's
CACHE = 500 * MEGABYTE  # of the cache folder, before it is packed

BUILD_SECONDS = 900.0  # where BUILD_TIMEOUT does not say
STORE_SECONDS = 120.0  # one get or put, with its retries
STORE_ATTEMPTS = 6
STORE_SILENCE = 20.0  # a connection that says nothing
KILL_SECONDS = 5.0  # between SIGTERM and SIGKILL
