"""``python -m countvi``."""

from countvi.cli import main

if __name__ == "__main__":
    main()
