"""Run the command line with ``python -m hagmil``."""

from hagmil.cli import main

if __name__ == "__main__":
    main()
