"""The commands of a server's host; the one room that knows both supervisor and galleries."""

from cyclopts import App

from teran.cli.detector import detector_app
from teran.cli.doctor import doctor
from teran.cli.move_gallery import move_gallery
from teran.cli.serve import serve
from teran.cli.status import status


def register(app: App) -> None:
    """Add the sub-commands to `app`."""
    for command in (serve, doctor, status, move_gallery):
        app.command(command)
    app.command(detector_app)
