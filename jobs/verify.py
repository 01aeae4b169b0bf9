"""Hash every column again, list what is damaged or left over, and with verify.repair=true mend it."""

from datetime import UTC, datetime, timedelta

from klray import config as configs
from klray.config import Config
from klray.config.job import verb
from klray.errors import KlrayError
from klray.store import Store, layout
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
    say(f"snapshots  {len(store.snapshot_ids()):,}; {len(snapshots):,} objects of snapshots and results are damaged")
    for damage in snapshots:
        say(f"  {damage.message}")
    say(f"leftovers  {len(found.leftovers):,}, of work that was cut short, came second or was replaced")
    for leftover in found.leftovers:
        hours = (datetime.now(UTC) - leftover.written).total_seconds() / 3600
        say(f"  {leftover.kind:<8}  {hours:8.1f} h old  {leftover.path}")
    if not config.verify.repair:
        if found.damages or found.leftovers:
            say("verify.repair=true takes damaged columns out, to be scored again, and removes old leftovers")
        return 1 if found.damages else 0
    removed = store.repair(found, timedelta(hours=config.verify.grace_hours))
    young = len(found.leftovers) - sum(leftover.path in removed for leftover in found.leftovers)
    stay = f"; {young:,} leftovers stay until they are {config.verify.grace_hours:g} h old (verify.grace_hours)"
    say(f"removed    {len(removed):,}{stay if young else ''}")
    for path in removed:
        say(f"  {path}")
    folders = [damage.path for damage in columns if damage.path and layout.commit_path(damage.key) in removed]
    if folders:
        say(
            f"stay       {len(folders):,} folders of columns that were taken out, which somebody may be reading now; "
            f"the next verify.repair=true removes them if nobody wrote there for {config.verify.grace_hours:g} h"
        )
    for path in folders:
        say(f"  {path}")
    return 1 if snapshots else 0


if __name__ == "__main__":
    main()
