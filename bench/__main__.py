"""`python -m bench [--seconds N] [steps|http]`: print the tables of this folder."""

import argparse
import asyncio

from bench import http_load, steps


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("part", nargs="?", choices=["steps", "http"])
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each line over HTTP")
    asked = parser.parse_args()
    if asked.part in (None, "steps"):
        steps.run(print)
        print()
    if asked.part in (None, "http"):
        asyncio.run(http_load.run(asked.seconds, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
