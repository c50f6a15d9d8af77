"""Commands that keep a database in order."""

from __future__ import annotations

import click

from dse.cli.output import db_option, emit, json_option


@click.group(epilog="Example: dse db check --db studies.db")
def db() -> None:
    """Upgrade, check or compact a database of studies."""


@db.command(epilog="Example: dse db upgrade --db studies.db")
@db_option
@json_option
def upgrade(db: str | None, as_json: bool) -> None:
    """Bring the database up to this version's schema: all of it or nothing; an SQLite file is copied first."""
    from dse.store.upkeep import upgrade as upgraded
    from dse.study import database

    done = upgraded(database(db))
    if as_json:
        emit({"before": done.before, "after": done.after, "backup": str(done.backup) if done.backup else None})
    elif done.before == done.after:
        click.echo(f"up to date (schema {done.after})")
    else:
        click.echo(f"upgraded from schema {done.before} to {done.after}")
        if done.backup:
            click.echo(f"the file as it was: {done.backup}")


@db.command(epilog="Example: dse db check --db studies.db")
@db_option
@json_option
def check(db: str | None, as_json: bool) -> None:
    """Check the database: its own integrity, what rows promise each other, every design's hash. Exits with 1 if not."""
    from dse.errors import StoreRefused
    from dse.results import Results, check_codes
    from dse.store import open_store
    from dse.store.upkeep import check as checked
    from dse.study import database

    store = open_store(database(db), read_only=True)
    n_designs = 0
    try:
        found = list(checked(store))
        rows = store.studies()
        for row in rows:
            try:
                results = Results.load(store, row.name)
                check_codes(row.name, results.space, results.stored, most=len(results))
                n_designs += len(results)
            except StoreRefused as error:
                found.append(error.message)
    finally:
        store.close()
    if as_json:
        emit({"studies": len(rows), "designs": n_designs, "findings": found})
    else:
        click.echo("\n".join(found) or f"all is well: {len(rows):,} studies, {n_designs:,} designs")
    if found:
        raise click.exceptions.Exit(1)


@db.command(epilog="Example: dse db vacuum --db studies.db")
@db_option
@json_option
def vacuum(db: str | None, as_json: bool) -> None:
    """Give free space back to the disk."""
    from dse.store import open_store
    from dse.store.upkeep import vacuum as vacuumed
    from dse.study import database
    from dse.units import format_quantity

    store = open_store(database(db), must_exist=True)
    try:
        before, after = vacuumed(store)
    finally:
        store.close()
    if as_json:
        emit({"before_bytes": before, "after_bytes": after})
    else:
        click.echo(
            f"{format_quantity(float(before), 'db_bytes')} before, {format_quantity(float(after), 'db_bytes')} now"
        )
