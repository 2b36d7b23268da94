"""`python -m device_agent`: the same as `headway agent`."""

from sdk.cli import main

if __name__ == "__main__":
    import sys

    main(["agent", *sys.argv[1:]])
