"""`python -m pds` and the command `pds`: imports the program without looking for garbage meanwhile.

Imports make some 150,000 objects that stay; the collector would walk them again and again (0.1 s of
every start), and later in every full collection. So they are set aside once they are there.
"""

import gc
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    gc.disable()
    from pds.cli import import_command
    from pds.cli import main as run_command

    import_command(sys.argv[1:])
    gc.freeze()
    gc.enable()
    run_command()


if __name__ == "__main__":
    main()
