"""`python -m dcsync.cli`: the same as the installed command `dcsync`."""

from dcsync.cli import main

if __name__ == "__main__":
    main()
