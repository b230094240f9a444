"""The whole command line: every command and group."""

from __future__ import annotations

from trtbuild.cli import cache, keys
from trtbuild.cli.bench import bench
from trtbuild.cli.calibrate import calibrate
from trtbuild.cli.doctor import doctor
from trtbuild.cli.engine import engine
from trtbuild.cli.export import export
from trtbuild.cli.inspect import inspect
from trtbuild.cli.lock import lock
from trtbuild.cli.nightly import nightly
from trtbuild.cli.program import empty_program
from trtbuild.cli.promote import promote
from trtbuild.cli.sensitivity import sensitivity
from trtbuild.cli.verify import verify

app = empty_program()

app.command()(engine)
app.command()(export)
app.command()(calibrate)
app.command()(sensitivity)
app.command()(verify)
app.command()(bench)
app.command()(inspect)
app.command()(nightly)
app.add_typer(cache.app, name="cache")
app.add_typer(keys.app, name="keys")
app.command()(promote)
app.command()(lock)
app.command()(doctor)
