"""``python -m hagmil`` is ``hagmil``."""

from hagmil.cli import main

if __name__ == "__main__":
    main()
