"""The command that checks a stored design with a tool of the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dse.cli.completing import study_argument
from dse.cli.looking import stored_results
from dse.cli.output import db_option, emit, json_option

if TYPE_CHECKING:
    from dse.capabilities import CheckedProduct, CrossCheck


@click.command(epilog="Example: dse crosscheck medical-vqa-edge 17 --with scalesim --phase decode")
@study_argument
@click.argument("number", type=int)
@click.option("--with", "tool", required=True, metavar="TOOL", help="scalesim or zigzag, or a plug-in's.")
@click.option("--python", default="", metavar="PATH", help="Interpreter of the environment that has the tool.")
@click.option("--phase", default="prefill", show_default=True, help="encode, prefill or decode.")
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, help="How many distinct products, by time."
)
@click.option("--limit", "limit_s", type=click.FloatRange(1), default=60.0, show_default=True, metavar="S",
              help="Seconds that the tool may take for a product.")  # fmt: skip
@db_option
@json_option
def crosscheck(
    study: str, number: int, tool: str, python: str, phase: str, top: int, limit_s: float, db: str | None, as_json: bool
) -> None:
    """Check design NUMBER of STUDY with another tool, product by product.

    Its heaviest matrix products are written in the tool's own formats and run in the tool's own environment.
    """
    from dse import catalogue

    chosen = stored_results(study, db).design(number)
    found = catalogue.outside_tool(tool).check(chosen, phase, top, python, limit_s)
    if as_json:
        emit({"study": study, "number": number, **_document(found)})
        return
    click.echo(f"design {number} of study {study!r}, {found.phase}: {found.tool} against {found.compared}")
    _print_products(found)
    for product in found.products:
        if product.error:
            click.echo(f"{_size(product.checked)}: the tool {product.error}", err=True)
    for sentence in found.not_expressible:
        click.echo(f"not expressible: {sentence}", err=True)


def _document(found: CrossCheck) -> dict[str, Any]:
    return {
        "tool": found.tool,
        "phase": found.phase,
        "compared": found.compared,
        "products": [
            {
                "label": p.label, "count": p.count, "share_ratio": p.share_ratio, "size_mnk": list(p.size),
                "checked_mnk": list(p.checked), "bits": list(p.bits), "ours": dict(p.ours), "tool": dict(p.tool),
                "difference_ratio": difference_ratio(p, found.compared), "error": p.error,
            }
            for p in found.products
        ],
        "median_difference_ratio": median_difference_ratio(found),
        "energy_rank_correlation": energy_rank_correlation(found),
        "not_expressible": list(found.not_expressible),
    }  # fmt: skip


def difference_ratio(product: CheckedProduct, compared: str) -> float | None:
    """Return our cycles over the tool's, less one; None where the tool failed."""
    return product.ours[compared] / product.tool["cycles"] - 1.0 if not product.error else None


def median_difference_ratio(found: CrossCheck) -> float | None:
    """Return the median size of the differences; None where there is none."""
    import numpy as np

    differences = [difference_ratio(p, found.compared) for p in found.products]
    known = [abs(d) for d in differences if d is not None]
    return float(np.median(known)) if known else None


def energy_rank_correlation(found: CrossCheck) -> float | None:
    """Return Spearman's rank correlation of our energies and the tool's; None for fewer than three, or no energies."""
    import numpy as np

    pairs = [(p.ours["energy_j"], p.tool["energy_j"]) for p in found.products if "energy_j" in p.tool]
    if len(pairs) < 3:
        return None
    ranks = [np.argsort(np.argsort(column)) for column in zip(*pairs, strict=True)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _print_products(found: CrossCheck) -> None:
    from dse.text import table
    from dse.units import format_quantity

    has_energy = any("energy_j" in p.tool for p in found.products)
    is_cut = any(p.checked != p.size for p in found.products)
    header = ["products", "each", "share", "m x n x k", *["checked"] * is_cut, "bits", "physical", "with memory",
              "scalesim", "tool", "difference", *["energy", "tool's"] * has_energy]  # fmt: skip
    rows = []
    for p in found.products:
        difference = difference_ratio(p, found.compared)
        energies = [format_quantity(p.ours["energy_j"], "energy_j"), _joules(p)] if has_energy else []
        rows.append(
            [
                p.label, f"{p.count:,.4g}", f"{100 * p.share_ratio:.1f} %", _size(p.size),
                *[_size(p.checked)] * is_cut, f"{p.bits[0]:.3g}x{p.bits[1]:.3g}",
                *(f"{p.ours[c]:,.0f}" for c in ("physical_cycles", "latency_cycles", "scalesim_cycles")),
                "failed" if difference is None else f"{p.tool['cycles']:,.0f}",
                "" if difference is None else f"{100 * difference:+.2f} %",
                *energies,
            ]
        )  # fmt: skip
    click.echo("\n" + table(header, rows, left=1))
    median, rank = median_difference_ratio(found), energy_rank_correlation(found)
    said = [] if median is None else [f"median difference {100 * median:.2f} %"]
    said += [] if rank is None else [f"rank correlation of energies {rank:.2f}"]
    if said:
        click.echo("\n" + ", ".join(said))


def _joules(product: CheckedProduct) -> str:
    from dse.units import format_quantity

    return format_quantity(product.tool["energy_j"], "energy_j") if "energy_j" in product.tool else ""


def _size(size: tuple[int, int, int]) -> str:
    return " x ".join(str(side) for side in size)
