"""Hash every column again, list what is damaged or left over, and with verify.repair=true mend it."""

from datetime import UTC, datetime, timedelta

from klray import config as configs
from klray.config import Config
from klray.config.job import verb
from klray.errors import KlrayError
from klray.store import Store, layout
from klray.words.numbers import counted
from klray.words.progress import Stages
from klray.words.tables import say


@verb
def main(config: Config) -> int:
    """Exit code 1 if a column is damaged and was not taken out, or a snapshot is damaged."""
    if config.verify.grace_hours < 0:
        raise KlrayError(f"verify.grace_hours={config.verify.grace_hours}: must be 0 or more")
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    with Stages("verify") as stages:
        found = store.audit(lambda done, total: stages("columns", done, total))
    columns = [damage for damage in found.damages if damage.key]
    snapshots = [damage for damage in found.damages if not damage.key]
    say(f"store      {store.url}")
    say(f"columns    {found.sound:,} hold what was committed, {len(columns):,} do not")
    for damage in columns:
        say(f"  {damage.message}")
    objects = counted(len(snapshots), "damaged object")
    say(f"snapshots  {len(store.snapshot_ids()):,}; {objects} of snapshots and results")
    for damage in snapshots:
        say(f"  {damage.message}")
    say(f"leftovers  {len(found.leftovers):,}, of work that was cut short, came second or was replaced")
    for leftover in found.leftovers:
        hours = (datetime.now(UTC) - leftover.written).total_seconds() / 3600
        say(f"  {leftover.kind:<8}  {hours:8.1f} h old  {leftover.path}")
    if not config.verify.repair:
        if columns or found.leftovers:
            say("verify.repair=true takes damaged columns out, to be scored again, and removes old leftovers")
        if old := store.superseded(found):
            say(
                "a damaged snapshot is named until it is removed, with its results, by whoever knows that nobody cites "
                f"it: klray verify store.url={store.url} verify.repair=true 'verify.snapshots=[{','.join(old)}]'"
            )
        return 1 if found.damages else 0
    gone = store.remove_snapshots(found, config.verify.snapshots)
    removed = [*store.repair(found, timedelta(hours=config.verify.grace_hours)), *gone]
    young = len(found.leftovers) - sum(leftover.path in removed for leftover in found.leftovers)
    grace = f"{config.verify.grace_hours:g} h"
    stay = f"; {counted(young, 'leftover')} written to within {grace} (verify.grace_hours)"
    say(f"removed    {len(removed):,}{stay if young else ''}")
    for path in removed:
        say(f"  {path}")
    folders = [damage.path for damage in columns if damage.path and layout.commit_path(damage.key) in removed]
    if folders:
        say(
            f"stay       {counted(len(folders), 'folder')} of columns that were taken out, which somebody may be "
            f"reading; the next verify.repair=true removes what nobody wrote to for {grace}"
        )
    for path in folders:
        say(f"  {path}")
    named = tuple(f"{each}/" for each in gone)
    return 1 if any(damage.path not in gone and not damage.path.startswith(named) for damage in snapshots) else 0


if __name__ == "__main__":
    main()
