"""Run the command line as `python -m overhaul`."""

from overhaul.cli import main

if __name__ == "__main__":
    main()
