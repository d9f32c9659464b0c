"""Written by CMake when ``_C`` is built."""

TORCH_VERSION: str
