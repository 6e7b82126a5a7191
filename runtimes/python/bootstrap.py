"""Starts the Python runtime. Kept this small because Python caches the compiled form of modules, never of the script."""

from _thaw_runtime import main

main()
