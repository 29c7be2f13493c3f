"""`python -m drs_ray`: the command line, also where its script is not on the PATH."""

from drs_ray.cli import main

if __name__ == "__main__":
    main()
