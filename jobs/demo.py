"""Run the whole way on the embedded family: train, score, publish, analyse, report."""

from jobs.analyze import analyze
from jobs.publish import publish
from jobs.report import report
from jobs.score import score
from klray.analysis.runs_table import format_table, run_table
from klray.config import Config
from klray.config.job import verb


@verb
def main(config: Config) -> int:
    """Exit code 1 if any checkpoint failed."""
    sweep = score(config)
    manifest = publish(config)
    result = analyze(config)
    page = report(config)
    print()
    print(format_table(run_table(result)))
    print(f"\nstore     {config.store.url}\nsnapshot  {manifest.id}\nreport    {page}")
    return 1 if sweep.failures else 0


if __name__ == "__main__":
    main()
