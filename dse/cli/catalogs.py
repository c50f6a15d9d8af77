"""Commands that list what is known: models, hardware, knobs; and what is installed."""

from __future__ import annotations

from typing import Any

import click

from dse.cli.output import db_option, emit, json_option, read_size


@click.command(epilog="Example: dse models")
@json_option
def models(as_json: bool) -> None:
    """List the catalogue's models."""
    from dse.model import model_names, read_model
    from dse.text import table

    found = [read_model(name) for name in model_names()]
    if as_json:
        emit([_model_summary(model) for model in found])
        return
    header = ["model", "type", "parameters", "active", "KV per token", "takes"]
    rows = [
        [
            m.name, m.model_type, f"{m.n_params / 1e9:.2f} B", f"{m.n_active_params / 1e9:.2f} B",
            f"{m.kv_bytes_per_token() / 1024:.1f} KiB", ", ".join(m.modalities),
        ]
        for m in found
    ]  # fmt: skip
    click.echo(table(header, rows, left=2))


def _model_summary(model: Any) -> dict[str, Any]:
    return {
        "name": model.name,
        "model_type": model.model_type,
        "n_params": model.n_params,
        "n_active_params": model.n_active_params,
        "weight_bytes": model.weight_bytes(),
        "kv_bytes_per_token": model.kv_bytes_per_token(),
        "modalities": list(model.modalities),
        "max_context": model.max_context,
        "sources": dict(model.sources),
    }


@click.command(epilog="Example: dse model qwen2.5-vl-3b --image-px 1920x1080")
@click.argument("source", metavar="NAME_OR_FILE")
@click.option("--layers", is_flag=True, help="Print the layer table.")
@click.option("--image-px", metavar="WxH", help="Also give the visual tokens of an image of this size.")
@json_option
def model(source: str, layers: bool, image_px: str | None, as_json: bool) -> None:
    """Read a model, from the catalogue or from a Hugging Face config.json, and count it."""
    from dse.model import read_model

    read = read_model(source)
    document = _model_summary(read)
    document["components"] = _components(read)
    if image_px:
        width, height = read_size(image_px)
        layout = read.visual_layout(height, width)
        document["image"] = {
            "width_px": layout.width_px, "height_px": layout.height_px, "visual_tokens": layout.n_tokens,
            "extra_tokens": layout.extra_tokens, "encoder_positions": layout.n_sequences * layout.patches,
            "cross_attention_states": layout.n_states,
        }  # fmt: skip
    if as_json:
        emit(document | {"layers": _layers(read)})
        return
    _print_model(document)
    if layers:
        from dse.text import table

        rows = [[str(v) for v in row.values()] for row in _layers(read)]
        click.echo("\n" + table(["module", "kind", "in", "out", "copies", "active", "shrinks with"], rows, left=2))


def _print_model(document: dict[str, Any]) -> None:
    from dse.text import table

    click.echo(f"{document['name']} ({document['model_type']}), takes {', '.join(document['modalities'])}")
    click.echo(f"parameters          {document['n_params']:,}")
    click.echo(f"active per token    {document['n_active_params']:,}")
    click.echo(f"weights at 16 bit   {document['weight_bytes']:,} B")
    click.echo(f"KV cache per token  {document['kv_bytes_per_token']:,} B")
    if document["max_context"]:
        click.echo(f"longest context     {document['max_context']:,} tokens")
    rows = [[c["name"], str(c["blocks"]), f"{c['n_params']:,}"] for c in document["components"]]
    click.echo("\n" + table(["component", "blocks", "parameters"], rows, left=1))
    if "image" in document:
        image = document["image"]
        states = image["cross_attention_states"]
        what = f"{states:,} cross-attention states" if states else f"{image['visual_tokens']:,} visual tokens"
        click.echo(f"\nan image becomes {image['width_px']} x {image['height_px']} px and {what}")
    for what, source in document["sources"].items():
        click.echo(f"{what}: {source}")


def _components(read: Any) -> list[dict[str, Any]]:
    names = dict.fromkeys(m.component for m in read.modules)
    units = read.units
    return [
        {
            "name": name,
            "blocks": sum(b.component == name for b in read.blocks),
            "n_params": sum(
                m.n_params(*units.get((m.component, m.block), (0, 0))) for m in read.modules if m.component == name
            ),
        }
        for name in names
    ]


def _layers(read: Any) -> list[dict[str, Any]]:
    rows = []
    for m in read.modules:
        at = read.units.get((m.component, m.block), (0, 0))
        shrinks = [n for n, d in (("heads", 1), ("channels", 2)) if m.in_dim[d] or m.out_dim[d]]
        rows.append(
            {
                "module": m.path, "kind": str(m.kind), "in": m.in_dim.size(*at), "out": m.out_dim.size(*at),
                "copies": m.n_copies, "active": m.n_active, "shrinks_with": ", ".join(shrinks),
            }
        )  # fmt: skip
    return rows


@click.command(epilog="Example: dse hardware h100-sxm-80gb")
@click.argument("name", required=False)
@json_option
def hardware(name: str | None, as_json: bool) -> None:
    """List the catalogue's hardware, or show one entry with its sources."""
    from dse.hardware import Device, hardware_names, read_hardware
    from dse.text import table

    if name:
        _show_hardware(read_hardware(name), as_json)
        return
    found = [read_hardware(n) for n in hardware_names()]
    if as_json:
        emit([_with_calibration(h) for h in found])
        return
    rows = []
    for h in found:
        peak = h.peak_ops_per_s.get("fp16") if isinstance(h, Device) else None
        bandwidth = h.memory_bytes_per_s if isinstance(h, Device) else float(h.reference["dram_bytes_per_s"])
        power = h.power_w if isinstance(h, Device) else None
        rows.append(
            [
                h.name, h.kind if isinstance(h, Device) else "template", f"{peak / 1e12:.0f}" if peak else "-",
                f"{h.memory_bytes / 2**30:.0f}", f"{bandwidth / 1e9:.0f}", f"{power:.0f}" if power else "-",
            ]
        )  # fmt: skip
    header = ["hardware", "kind", "16-bit TFLOP/s", "memory GiB", "bandwidth GB/s", "power W"]
    click.echo(table(header, rows, left=2))


def _show_hardware(found: Any, as_json: bool) -> None:
    from dse.hardware import Device
    from dse.text import table
    from dse.units import format_quantity

    if as_json:
        emit(_with_calibration(found))
        return
    click.echo(f"{found.name}: {found.title}")
    if isinstance(found, Device):
        click.echo(_calibration_line(found))
        rows = [
            [f"peak {p}", f"{v / 1e12:g} T op/s", _source(found, f"peak_ops_per_s.{p}")]
            for p, v in found.peak_ops_per_s.items()
        ]
        for field in (
            "memory_bytes",
            "memory_bytes_per_s",
            "cache_bytes",
            "n_cores",
            "power_w",
            "link_bytes_per_s",
            "n_per_node",
            "node_link_bytes_per_s",
            "list_price_usd",
        ):
            value = getattr(found, field)
            if value is not None:
                rows.append([field, format_quantity(float(value), field), _source(found, field)])
        if found.price_usd_per_hour:
            rows.append(
                [
                    "price_usd_per_hour",
                    "{} to {} USD/h".format(*found.price_usd_per_hour),
                    _source(found, "price_usd_per_hour"),
                ]
            )
        click.echo(table(["field", "value", "source"], rows, left=3))
        return
    reference = [[k, format_quantity(v, k) if isinstance(v, int | float) else v] for k, v in found.reference.items()]
    click.echo("\n" + table(["knob", "reference design"], reference, left=2))
    constants = [
        [n, f"{c.value:.3g}", f"{c.low:.3g} .. {c.high:.3g}", f"{c.node_nm:g} nm, {c.voltage_v:g} V", c.source]
        for n, c in found.constants.items()
    ]
    click.echo("\n" + table(["constant", "value", "band", "node", "source"], constants, left=5))


def _with_calibration(found: Any) -> dict[str, Any]:
    from dse.catalogue import calibrator
    from dse.hardware import Device

    document: dict[str, Any] = found.to_json()
    if isinstance(found, Device):
        document["calibration"] = calibrator().calibration_of(found)
    return document


def _calibration_line(device: Any) -> str:
    from dse.catalogue import calibrator

    found = calibrator().calibration_of(device)
    if found["basis"] == "calibrated":
        n_rows = sum(k["n_rows"] for k in found["kernels"])
        origin = found["source"].get("origin") or found["source"].get("table", "its own table")
        return f"kernels: calibrated on {n_rows:,} measurements of this device ({origin})"
    wider = ", another vendor or class of device: the widest band" if found["is_other_kind"] else ", with a wider band"
    return f"kernels: constants transferred from {', '.join(found['devices'])}{wider}"


def _source(device: Any, field: str) -> str:
    return str(device.sources.get(field, device.sources.get("*", "")))


@click.command(epilog="Example: dse knobs")
@json_option
def knobs(as_json: bool) -> None:
    """List every knob with its legal values."""
    from dse.knobs import ALIASES, KNOBS
    from dse.text import table

    records = [
        {
            "name": k.name, "unit": k.unit, "one_per": k.scope.value, "help": k.help,
            "legal": k.legal, "alias": ", ".join(k.aliases),
        }
        for k in KNOBS.values()
    ]  # fmt: skip
    if as_json:
        emit(records)
        return
    rows = [[r["name"], r["unit"], r["one_per"], r["legal"], r["help"]] for r in records]
    click.echo(table(["knob", "unit", "one per", "legal values", "meaning"], rows, left=5))
    for alias, names in ALIASES.items():
        click.echo(f"{alias} sets {' and '.join(names)}")


@click.command(epilog="Example: dse doctor")
@db_option
@json_option
def doctor(db: str | None, as_json: bool) -> None:
    """Check the installation: versions, packages, plug-ins, database."""
    from dse.doctor import examine
    from dse.study import database

    checks = examine(database(db))
    if as_json:
        emit([{"check": c.name, "ok": c.is_ok, "detail": c.detail, "remedy": c.remedy} for c in checks])
    else:
        for c in checks:
            click.echo(f"{'ok  ' if c.is_ok else 'FAIL'}  {c.name}: {c.detail}")
            if not c.is_ok:
                click.echo(f"      {c.remedy}")
    if not all(c.is_ok for c in checks):
        raise click.exceptions.Exit(1)
