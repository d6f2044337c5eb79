"""A run of this machine or cluster, as an object: what it has reached, and what can be done with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distrain.api.commands import options_of, run_command
from distrain.api.given import read_given
from distrain.api.launch import Launched, OnEvent, follow, request_end, start_run, wait_for_end
from distrain.api.metrics import Metrics, read_metrics
from distrain.config import Recipe, read_recipe
from distrain.config.profile import read_options, read_profile
from distrain.errors import RunError
from distrain.evaluation.request import resolve as resolve_evaluation
from distrain.launchers.fit_request import FitRequest
from distrain.runs import checkpoints, query
from distrain.runs.checkpoints import Entry
from distrain.runs.directory import RunDirectory
from distrain.runs.evaluations import EvaluationResult, read_evaluation
from distrain.runs.liveness import read_states
from distrain.runs.status import Status
from distrain.service.start import submit_again

if TYPE_CHECKING:
    from distrain.api.predictions import Images, Predictions


class Run:
    """A run, by its directory: whether this process has started it or another one, and also after both have ended.

    Nothing is stored in the object that the directory does not have; reading a property reads the files.

    >>> run = distrain.open_run("last")
    >>> run.status.state, run.status.step
    ('finished', 40)
    >>> int(run.metrics()["step"].max())
    40
    """

    def __init__(self, directory: RunDirectory, *, launched: Launched | None = None) -> None:
        self._directory = RunDirectory(directory.path.absolute())
        self._launched = launched  # by this process
        self._opened: dict[tuple[Path, str | None], Any] = {}  # the network that has predicted last

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._directory.path

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.path.name

    @property
    def status(self) -> Status:
        """Progress and results: `state`, `step`, `total_steps`, `epoch`, `eta_s`, `best`, `last`, `attempts` and more.

        The state is one of status.json, or what only an observer knows, as in `distrain runs`: `died` for a run whose
        processes are gone, `never started`, or `requeued`.
        """
        status = self._directory.read_status()
        is_starting = self._launched is not None and self._launched.is_starting(status)
        state = "starting" if is_starting else read_states([self._directory])[self.path]
        return status.model_copy(update={"state": state})

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return read_recipe(self._directory.recipe)

    @property
    def digest(self) -> str | None:
        """The digest of the trained weights; None before the run has finished."""
        return self._directory.read_status().weights_digest

    @property
    def checkpoints(self) -> list[Entry]:
        """The checkpoints that are kept, the oldest first: `path`, `step`, `evaluation` and more."""
        return checkpoints.read_catalog(self._directory.checkpoints)

    def metrics(self) -> Metrics:
        """Return what the run has recorded, as columns: a mapping of names to NumPy arrays of one length.

        >>> metrics = run.metrics()
        >>> steps, losses = metrics.curve("val/loss")
        >>> len(steps) == len(losses)
        True
        >>> bool(metrics.to_pandas()["train/loss"].notna().any())  # needs pandas
        True
        """
        return read_metrics(self._directory)

    def log(self, rank: int = 0) -> str:
        """Return what a rank has written to its log, over all attempts."""
        return "".join(query.read_log(self._directory, rank, follow=False))

    def wait(self, *, on_event: OnEvent | None = None, progress: bool = True) -> "Run":
        """Wait until the run has ended, and return it: finished, or stopped with a save.

        An interrupt (Ctrl-C, or the notebook's stop button) stops the run, which saves first; a second one leaves it to
        that. Shows the run meanwhile unless `progress` is false. Raises `UserError` where the run has ended with bad
        input, and `RunFailedError` for any other failure, with the traceback as a note.
        """
        follow(self._directory, self._launched, on_event, wait=True, progress=progress)
        return self

    def stop(self, *, wait: bool = True) -> "Run":
        """Have the run save at its next step and end; one that waits in a queue leaves it. Returns the run.

        Does nothing where it has ended already. Unless `wait`, returns at once.

        >>> run.stop().status.state
        'finished'
        """
        request_end(self._directory, self._launched)
        if wait:
            wait_for_end(self._directory, self._launched)
        return self

    def resume(self, *, on_event: OnEvent | None = None, wait: bool = True, progress: bool = True) -> "Run":
        """Continue from the newest checkpoint on as many processes as before, here or in the queue where it was.

        Does nothing where the run has finished. Returns the run; the other arguments are those of `distrain.fit`.
        """
        self._directory.check_format()
        if self._directory.read_status().state == "finished":
            return self
        if submit_again(self._directory) is None:
            profile = read_profile(self._directory.profile)
            request = FitRequest(run=self.path, options=profile.as_options())
            _, self._launched = start_run(request, on_event, wait=wait, progress=progress)
        else:
            follow(self._directory, None, on_event, wait=wait, progress=progress)
        return self

    def evaluate(
        self,
        checkpoint: int | str | None = None,
        *,
        data: str | Path | None = None,
        split: Literal["train", "val"] | None = None,
        metrics: Sequence[str] | None = None,
        set: Mapping[str, Any] | None = None,  # noqa: A002 - as the option of the command line
        device: str | None = None,
        gpus: int | None = None,
        procs: int | None = None,
    ) -> EvaluationResult:
        """Evaluate a checkpoint in new processes: a step, `best` or `last`; by default the best one.

        Returns the metrics, the results of each class, the worst mistakes, and by `read_confusion()` the confusion
        matrix. The arguments are the options of `distrain eval`. Raises a `UserError` for an invalid request.

        >>> evaluation = run.evaluate(metrics=["top1", "f1"])
        >>> sorted(evaluation.metrics)
        ['val/f1', 'val/loss', 'val/top1']
        >>> int(evaluation.read_confusion().counts.sum()) == evaluation.num_samples
        True
        """
        read_options(gpus=gpus, device=device, processes=procs)
        chosen = self._find_checkpoint(checkpoint)
        given = read_given(set)
        if given.pickles:
            raise RunError("an evaluation takes objects by reference only: give module:name")
        overrides = [*given.overrides, *([] if metrics is None else [f"eval.metrics=[{','.join(metrics)}]"])]
        place = None if data is None else str(data)
        folder, _, _ = resolve_evaluation(self._directory, chosen, split=split, overrides=overrides, data=place)
        options = {
            "--data": place,
            "--split": split,
            "--set": overrides,
            "--device": device,
            "--gpus": gpus,
            "--procs": procs,
        }
        run_command("eval", str(chosen), *options_of(options))
        evaluation = read_evaluation(folder)
        if evaluation is None:
            raise RunError(f"{folder.findings} cannot be read; evaluate the run again")
        return evaluation

    def predict(
        self,
        images: "Images",
        *,
        checkpoint: int | str | None = None,
        device: str | None = None,
        batch_size: int = 32,
    ) -> "Predictions":
        """Predict images in this process, with the best checkpoint unless another is named.

        `images` is a path, a Pillow image, an array or a tensor, or a sequence of these; arrays uint8 [h, w],
        [h, w, 3] or [n, h, w, channels], tensors uint8 [channels, h, w] or [n, channels, h, w]. Raises `DataError` for
        an image that cannot be read.

        >>> import numpy
        >>> predictions = run.predict([numpy.zeros((8, 8), numpy.uint8)])
        >>> predictions.values.shape, len(predictions.classes)
        ((1, 10), 10)
        """
        from distrain.api.predictions import open_network, predict

        path = self._find_checkpoint(checkpoint)
        key = (path, device)
        if key not in self._opened:
            self._opened = {key: open_network(self._directory, path, device=device)}
        return predict(self._opened[key], images, batch_size=batch_size)

    def export(
        self,
        form: str = "bundle",
        *,
        out: str | Path | None = None,
        checkpoint: int | str | None = None,
        images: Sequence[str | Path] = (),
        with_normalize: bool = False,
        force: bool = False,
    ) -> Path:
        """Write the network for other programs, in a new process: a bundle, safetensors, torch or onnx.

        Returns what was written, by default below `RUN/export`. A graph is compared with the network on real images
        first. The arguments are the options of `distrain export`.

        >>> run.export("safetensors", force=True).name
        'model.safetensors'
        """
        words = [] if checkpoint is None else [str(checkpoint)]
        options = {
            "--format": form,
            "--out": out,
            "--images": [str(image) for image in images],
            "--with-normalize": with_normalize,
            "--force": force,
        }
        return Path(run_command("export", str(self.path), *words, *options_of(options))["path"])

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        try:
            status = self.status
        except RunError as error:
            return f"Run({self.name}: {error})"
        place = f", step {status.step} of {status.total_steps}" if status.total_steps else ""
        return f"Run({self.name}: {status.state}{place})"

    def _repr_html_(self) -> str:
        from distrain.service.web.report.notebook import draw_notebook_run

        return draw_notebook_run(self._directory)

    def _find_checkpoint(self, which: int | str | None) -> Path:
        name = None if which is None else str(which)
        return query.find_checkpoint(str(self.path), self.path.parent, must_be_best=False, which=name)[1]
