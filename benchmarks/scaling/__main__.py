"""Runs ``benchmarks.scaling.run``."""

from benchmarks.scaling.run import main

if __name__ == "__main__":
    main()
