"""Run the whole way on the embedded family: train, score, publish, analyse, report."""

from jobs.analyze import analyze
from jobs.publish import publish
from jobs.report import report
from jobs.score import score
from klray.analysis.runs_table import format_table, run_table
from klray.config import Config
from klray.config.job import verb
from klray.words.tables import say, show


@verb
def main(config: Config) -> int:
    """Exit code 1 if any checkpoint failed."""
    sweep = score(config)
    manifest = publish(config)
    result = analyze(config)
    page = report(config)
    say()
    show(format_table(run_table(result)))
    say()
    say(f"store     {config.store.url}")
    say(f"snapshot  {manifest.id}")
    say(f"report    {page}")
    return 1 if sweep.failures else 0


if __name__ == "__main__":
    main()
