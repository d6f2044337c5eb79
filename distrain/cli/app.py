"""Assembles the commands of `distrain`: one file for each command group.

A command imports what it needs when it runs, so that `--help` is fast.
"""

from typing import Annotated, Any

import typer

from distrain.cli import (
    bench,
    cancel,
    checkpoints,
    data,
    devices,
    doctor,
    evaluate,
    export,
    fit,
    import_weights,
    launch,
    logs,
    plan,
    predict,
    priority,
    queue,
    recipes,
    report,
    resume,
    runs,
    serve,
    stacks,
    stop,
    submit,
    sweep,
    verify,
)

HELP = "Train image models from one recipe: the same training wherever it runs, and no work is lost when it is killed."
EPILOG = """
**Examples**

`distrain fit` - train the built-in digits recipe on this machine

`distrain fit cifar10 --gpus 4 --set train.epochs=20` - a recipe on four GPUs, with one value changed

`distrain fit imagefolder-resnet18 --data photos --device cpu --procs 2` - your own images, on two CPU processes

`distrain resume last` - resume the newest run where it was stopped or killed, on as many processes

`distrain submit cifar10 --nodes 2 --gpus 4 --time 4:00:00` - a recipe on a SLURM cluster

`distrain submit cifar10 --gpus 2 --priority 5` - in the queue of this machine, which `distrain serve` runs

`distrain sweep digits --param 'optimizer.lr=log(1e-3, 1)' --trials 20 --parallel 2` - search the best learning rate

`distrain bench cifar10 --data photos --gpus 4` - how fast it trains here, how it scales, and what limits it

`distrain plan cifar10 --gpus 8 --time 1:00:00` - memory, time and disk space of a run before its start

`distrain eval last` - the accuracy of the newest run for each class, and its worst mistakes

`distrain report last` - one HTML file about the newest run, to keep, send or print

`distrain predict last photos` - predictions of the newest run for your images

`distrain export last --format onnx` - the network of the newest run for other programs

`distrain stop last --wait` - make the newest run save and end
"""

app = typer.Typer(
    epilog=EPILOG.replace("\n\n", "\n\n\n"),
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fit", no_args_is_help=False)(fit.fit)
app.command("submit", no_args_is_help=False)(submit.submit)
app.command("sweep", no_args_is_help=True)(sweep.sweep)
app.command("stop")(stop.stop)
app.command("resume")(resume.resume)
app.command("cancel")(cancel.cancel)
app.command("priority", context_settings={"ignore_unknown_options": True})(priority.priority)  # -5 is a number
app.command("queue")(queue.queue)
app.command("serve")(serve.serve)
app.command("logs")(logs.logs)
app.command("stacks")(stacks.stacks)
app.command("report")(report.report)
app.add_typer(recipes.app, name="recipes")
app.add_typer(runs.app, name="runs")
app.add_typer(devices.app, name="devices")
app.add_typer(launch.app, name="launch")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(data.app, name="data")
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("import")(import_weights.import_)
app.command("bench")(bench.bench)
app.command("plan")(plan.plan)
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)


def _print_version(options: bool) -> None:
    if options:
        from importlib.metadata import version

        typer.echo(f"distrain {version('distrain')}")
        raise typer.Exit


@app.callback(help=HELP)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Define the options before a command."""


def build_command() -> Any:
    """Return the command line interface.

    Its help shows a type only for options with a value: for flags and arguments typer would print <bool> and <str>.
    """
    built = typer.main.get_command(app)
    _hide_types(built)
    return built


def _hide_types(command: Any) -> None:
    for param in command.get_params(typer.Context(command, help_option_names=["-h", "--help"])):
        if param.param_type_name == "argument" or param.is_flag:
            param.display_type_rich = _nothing
    for inner in getattr(command, "commands", {}).values():
        _hide_types(inner)


def _nothing(ctx: Any) -> None:  # noqa: ARG001 - typer's signature
    return None
