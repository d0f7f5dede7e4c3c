"""`python -m pds`: the same as the command `pds`."""

from pds.cli import main

if __name__ == "__main__":
    main()
