"""The ``switchyard`` command. Whatever goes wrong is a line on standard error and an exit code, never a traceback.

Exit codes: 0 all is well, 1 it was started and failed, 2 it could not be started.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

import click

from serve_app.errors import ConfigError

DEFAULT_FILE: Final = Path("serve_config.yaml")
FAILED: Final = 1
REFUSED: Final = 2

_FILE = click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("dspy-switchyard"), prog_name="switchyard")
def cli() -> None:
    """Serve DSPy programs in production on Ray Serve."""


@cli.command()
@_FILE
def check(file: Path) -> None:
    """Say every mistake in FILE (default: serve_config.yaml), a line each.

    The whole file is checked: Ray's own keys, programs and their state files, models, levels, policy, imports, and
    whether the variables that hold keys are set. Programs and graphs are imported from the working directory.
    Exit code 2 when there is a mistake.
    """
    from serve_app.config_check import check_file  # noqa: PLC0415 - only this command needs it

    problems = check_file(file)
    for problem in problems:
        click.echo(str(problem), err=True)
    if problems:
        raise SystemExit(REFUSED)
    click.echo(f"ok {file}")


@cli.command()
def schema() -> None:
    """Print the JSON Schema of serve_config.yaml, for editors.

    Save it beside the file and make the file's first line
    '# yaml-language-server: $schema=./serve_config.schema.json'.
    """
    from serve_app.config_schema import file_schema  # noqa: PLC0415 - imports Ray

    click.echo(json.dumps(file_schema(), indent=2))


@cli.command()
@_FILE
@click.option("--plain", is_flag=True, help="Ray Serve's default mode instead of its fast one (HAProxy).")
@click.option("--verbose", "-v", is_flag=True, help="Show Ray's and the replicas' output, too.")
@click.option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(".switchyard/serve.log"),
    show_default=True,
    help="Where Ray's and the replicas' output goes.",
)
def run(file: Path, *, plain: bool, verbose: bool, log_file: Path) -> None:
    """Serve FILE (default: serve_config.yaml) until Ctrl-C.

    Checks the file and the ports, starts a Ray of its own in fast mode, says when it is ready, and ends everything it
    started. To deploy to a Ray cluster that is already there, this one included, use
    'RAY_AUTH_MODE=token serve deploy FILE'.
    """
    from serve_app import launcher  # noqa: PLC0415 - only this command needs it

    raise SystemExit(launcher.run(file, plain=plain, verbose=verbose, log_file=log_file))


@cli.command("export-trainset")
@_FILE
@click.option("--program", required=True, help="Whose calls.")
@click.option("--min-score", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Leave out lower ones.")
@click.option("--output", "-o", type=click.File("w", encoding="utf-8"), default="-", help="A file, or -.")
def export_trainset(file: Path, program: str, min_score: float, output: IO[str]) -> None:
    """Write a program's recorded and scored calls as JSON lines, to optimise it again.

    FILE (default: serve_config.yaml) says where the program's record is. Load the lines as dspy.Example objects with
    serve_app.trainset.load_trainset.
    """
    from serve_app.trainset import read_archive, record_of, write_rows  # noqa: PLC0415 - only this command needs it

    archive = read_archive(record_of(file, program), program)
    rows = list(archive.rows(min_score))
    output.writelines(write_rows(rows))
    left_out = f"{archive.unmatched} verdicts on unrecorded calls, {archive.unreadable} unreadable lines"
    click.echo(f"{len(rows)} of {len(archive.calls)} recorded calls written; {left_out}", err=True)


@cli.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("target", metavar="OUTPUT", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--program", required=True, help="The program to call.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Of the running application.")
@click.option("--concurrency", type=click.IntRange(1, 4096), default=32, show_default=True, help="Calls at once.")
@click.option(
    "--retry-for",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds for which a call that is refused (429, 503) or gets no answer is made again.",
)
@click.option("--restart", is_flag=True, help="Forget what OUTPUT holds and begin anew.")
@click.option("--retry-failed", is_flag=True, help="Ask the rows again that OUTPUT says have failed.")
def batch(source: Path, target: Path, retry_for: float, **options: Any) -> None:  # noqa: ANN401 - one type an option
    """Call a program for every row of INPUT, and write what becomes of each to OUTPUT.

    INPUT has a JSON object a line: the inputs, or {"inputs": {...}, "options": {...}} (also where an input is called
    inputs or options). Calls have priority sheddable unless a row's options say otherwise.

    OUTPUT gets a line a row as calls finish, so in any order, with the number of the row's line and the row's hash:
    {"row", "hash", "outputs", "meta"} or {"row", "hash", "error": {"code", "detail"}}. After Ctrl-C the same command
    goes on where it ended.

    Exit code 0 when every row has an answer, 1 when some failed or are left, 2 when it could not be started (a bad
    INPUT or OUTPUT, nobody there), 130 after Ctrl-C.
    """
    from serve_app.bulk.command import run  # noqa: PLC0415 - only this command needs it

    raise SystemExit(run(source=source, target=target, retry_for_s=retry_for, **options))


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8100, show_default=True, help="Port to listen on.")
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    default=None,
    help="The models: how fast, how good, how patient; docs/simulator.md. Three models by default.",
)
def simulate(host: str, port: int, profile: Path | None) -> None:
    """Run an OpenAI-compatible provider that answers any DSPy signature, offline.

    While it runs, PUT /faults/MODEL has a model fail as you say; docs/simulator.md has the kinds.
    """
    from serve_app.simulator.profile import load_profile  # noqa: PLC0415 - only this command needs it
    from serve_app.simulator.server import run as serve  # noqa: PLC0415 - only this command needs it

    loaded = load_profile(profile)
    click.echo(f"Simulated provider at http://{host}:{port}/v1. Ctrl-C ends it.")
    serve(host, port, loaded)


@cli.group()
def kuberay() -> None:
    """What KubeRay needs to run serve_config.yaml on Kubernetes."""


@kuberay.command()
@_FILE
@click.option("--http-host", default="0.0.0.0", show_default=True, help="Address Serve listens on.")  # noqa: S104 - a pod's
@click.option("--redis-url", default=None, help="The cache's server; unless given, it replaces only 'embedded'.")
@click.option("--api-base", "bases", multiple=True, metavar="MODEL=URL", help="A provider's address; repeatable.")
@click.option("--name", default="switchyard", show_default=True, help="The RayService's name.")
@click.option("--config-only", is_flag=True, help="The configuration alone, for a container or 'serve deploy'.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write there, if all is well.")
def render(  # one parameter for each option
    file: Path,
    http_host: str,
    redis_url: str | None,
    bases: tuple[str, ...],
    name: str,
    output: Path | None,
    *,
    config_only: bool,
) -> None:
    """Print FILE (default: serve_config.yaml) as the serveConfigV2 of a RayService, for kustomize or 'kubectl patch'.

    The file stays the only source. It is checked as 'switchyard check' does, and whether each address in it means the
    same in a pod. Keys need not be set here: on the cluster they come from a secret.
    """
    from serve_app.kuberay import Surroundings, rayservice_patch, serve_config  # noqa: PLC0415 - only this command

    there = Surroundings(http_host, redis_url, dict(_pair(base) for base in bases))
    text = serve_config(file, there) if config_only else rayservice_patch(file, there, name)
    if output is None:
        click.echo(text, nl=False)
    else:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError([f"{output} cannot be written: {error.strerror or error}"]) from None


def _pair(text: str) -> tuple[str, str]:
    model, separator, url = text.partition("=")
    if not (model and separator and url):
        raise click.BadParameter(f"'{text}' is not MODEL=URL", param_hint="--api-base")
    return model, url


def main() -> None:
    """Entry point of ``switchyard``."""
    try:
        cli(prog_name="switchyard", standalone_mode=False)
    except ConfigError as error:
        click.echo("\n".join(error.problems), err=True)
        sys.exit(REFUSED)
    except click.ClickException as error:
        error.show()
        sys.exit(REFUSED)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(128 + 2)
    except BrokenPipeError:  # the reader of our output went away, as in `switchyard schema | head`
        sys.stderr.close()
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
