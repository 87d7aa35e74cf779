"""`python -m teran.cli`: the commands of a server's host alone, without those of the client."""

from teran.cli import register
from teran.commandline import new_app, run

register(app := new_app())
run(app)
