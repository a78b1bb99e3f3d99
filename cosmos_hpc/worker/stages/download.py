"""The download stage: fetches or writes what later stages read."""

from __future__ import annotations

from pathlib import Path

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.sections import SMALL_TEXT_ENCODER, SMALL_TOKENIZER
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.hub import needs as hub
from cosmos_hpc.hub.cache import fetch_all
from cosmos_hpc.hub.datasets import files_of_rows
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import say

#: What transformers calls the architecture.
_T5 = "t5"


def download(run: RunFolder, recipe: Recipe, task: int = 0) -> None:
    """Fetch or write tokenizer and text encoder, fetch weights and data, note where they lie.

    Raises:
        WorkError: something cannot be had; the message says what to do.
    """
    tokenizer, weights = recipe.data.tokenizer, recipe.train.init_from
    texts = recipe.data.text_encoder
    try:
        if tokenizer != SMALL_TOKENIZER and not hub.is_hub_name(tokenizer):
            hub.check_folder(f"data.tokenizer={tokenizer}", Path(tokenizer), hub.TOKENIZER_FILES)
        if texts and texts != SMALL_TEXT_ENCODER and not hub.is_hub_name(texts):
            _check_text_encoder(Path(texts), recipe)
        fetched = fetch_all([*hub.needs(recipe), *_dataset(run, recipe)])
        for repository, folder in fetched.items():
            say(f"{repository} is in {folder}")
        start = fetched.get(weights) if weights else None
        if texts and texts in fetched:
            _check_text_encoder(fetched[texts], recipe)
        if weights:
            _check_weights(start / hub.WEIGHTS_FOLDER if start else Path(weights), recipe)
    except RequestError as e:
        raise WorkError(str(e)) from None
    marker = {
        "tokenizer": tokenizer,
        "folder": _tokenizer(run, recipe, fetched),
        "text_encoder": _text_encoder(run, recipe, fetched),
        "init_from": str(start / hub.WEIGHTS_FOLDER) if start else None,
    }
    files.write_json(marker_path(run, "download"), marker)


def _dataset(run: RunFolder, recipe: Recipe) -> list[hub.HubFiles]:
    """What the run's videos are of a data set on the Hub."""
    folders = run.data.folders()
    if not folders:
        return []
    return files_of_rows(recipe, Path(folders[0]), files.iterate_jsonl(run.data.videos))


def _check_text_encoder(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that is no T5 model, or one of another width than the model reads."""
    where = f"data.text_encoder={recipe.data.text_encoder}"
    hub.check_folder(where, folder, hub.TEXT_ENCODER_FILES)
    try:
        config = files.read_json(folder / "config.json")
        kind, width = config["model_type"], config["d_model"]
    except (ValueError, TypeError, KeyError):
        raise WorkError(f"{where}: its config.json is not that of a T5 model") from None
    if kind != _T5:
        raise WorkError(f"{where} is a model of type {kind}, not {_T5}")
    if width != recipe.model.context_width:
        raise WorkError(
            f"{where} gives embeddings {width} wide, and model.context_width is "
            f"{recipe.model.context_width}; the published models read those of google-t5/t5-11b"
        )


def _check_weights(start: Path, recipe: Recipe) -> None:
    """Refuse weights of another model now, not after hours of preparing videos."""
    from cosmos_hpc.models.checkpoints.reader import open_weights

    open_weights(start).expect(recipe.model_for_clips(), may_be_new=True)
    say(f"training starts from {start}")


def _tokenizer(run: RunFolder, recipe: Recipe, fetched: dict[str, Path]) -> str:
    """Path of the tokenizer's folder; the small one is written, into the run."""
    wanted = recipe.data.tokenizer
    if wanted == SMALL_TOKENIZER:
        from cosmos_hpc.worker.tokenizers.small import write_small_tokenizer

        write_small_tokenizer(run.tokenizer, recipe.data.compression)
        say("wrote the small tokenizer")
        # Relative, so that the run folder can be moved.
        return "."
    folder = fetched.get(wanted) or Path(wanted).resolve()
    say(f"the tokenizer is {folder}")
    return str(folder)


def _text_encoder(run: RunFolder, recipe: Recipe, fetched: dict[str, Path]) -> str | None:
    """Path of the text encoder's folder; the small one is written, into the run."""
    wanted = recipe.data.text_encoder
    if wanted is None:
        return None
    if wanted == SMALL_TEXT_ENCODER:
        from cosmos_hpc.worker.tokenizers.texts import write_small_text_encoder

        width = recipe.model.context_width
        assert width is not None
        write_small_text_encoder(run.tokenizer / "text_encoder", width)
        say("wrote the small text encoder")
        return "text_encoder"
    folder = fetched.get(wanted) or Path(wanted).resolve()
    say(f"the text encoder is {folder}")
    return str(folder)
