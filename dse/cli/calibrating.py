"""calibrate: fit a device's kernel constants to measured latencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dse.cli.output import emit, json_option


@click.command(epilog="Example: dse calibrate measured.csv --out my-constants.toml")
@click.argument("table", metavar="TABLE.csv")
@click.option("--hardware", "files", multiple=True, metavar="FILE", help="TOML of a device that is in no catalogue.")
@click.option("--out", metavar="FILE", help="Write the constants as TOML, for 'calibration = \"FILE\"' of a device.")
@json_option
def calibrate(table: str, files: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Fit kernel constants to measured latencies, and print the error on rows that were not fitted."""
    from dse.catalogue import calibrator
    from dse.errors import TableError, UserError
    from dse.hardware import Device, read_hardware
    from dse.text import table as text_table

    devices = [read_hardware(name) for name in files]
    for device in devices:
        if not isinstance(device, Device):
            raise UserError(f"{device.name} is no device", "--hardware takes the TOML file of an existing device")
    if not Path(table).is_file():
        raise TableError(f"there is no table {table!r}", "name a CSV file; 'dse calibrate --help' shows how to call it")
    if not as_json:
        click.echo("fitting; a minute or two for some thousand rows", err=True)
    found = calibrator().calibrate(Path(table), [d for d in devices if isinstance(d, Device)])
    if out:
        try:
            Path(out).write_text(found.constants, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {out!r}: {error}", "name a file in a folder that you can write to") from None
    if as_json:
        emit({"scores": list(found.scores), "written": out})
        return
    header = [
        "device", "op", "precision", "rows",
        "held-out %", "median %", "5 folds %", "roofline %", "fixed %", "transferred %",
    ]  # fmt: skip
    click.echo(text_table(header, [_cells(score) for score in found.scores], left=3))
    click.echo(
        "\nmean absolute relative errors; held-out: fitted on the other half of the rows; roofline: full efficiency, "
        "no launch;\nfixed: one efficiency for all devices; transferred: constants of the table's other devices"
    )
    if out:
        click.echo(f"constants written to {out}")


def _cells(score: Any) -> list[str]:
    errors = ("error_ratio", "median_ratio", "folds_ratio", "roofline_ratio", "fixed_ratio", "transfer_ratio")
    shown = [f"{100 * score[name]:.1f}" if score[name] == score[name] else "-" for name in errors]
    return [score["device"], score["op"], score["precision"], str(score["n_rows"]), *shown]
