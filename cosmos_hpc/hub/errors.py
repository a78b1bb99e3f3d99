"""What the Hub's errors mean, in words."""

from __future__ import annotations

import os
from collections.abc import Sequence


def explain(repository: str, error: OSError) -> str:
    """Why a request failed, without the error's own text, which may hold signed addresses."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = status_of(error)
    if isinstance(error, GatedRepoError):
        return gated([repository])
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repository} on the Hub, or HF_TOKEN may not see it"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no such branch, tag or commit on the Hub"
    if status == 401:
        what = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the stored login"
        return f"{what} was refused by the Hub: it is wrong or has expired"
    if status == 403:
        return f"HF_TOKEN may not read {repository}; give it that permission on the Hub"
    if isinstance(error, EntryNotFoundError) and status:
        return f"{repository} lacks a file that it lists; try again later"
    if status:
        return f"the Hub answered {status} for {repository}; try again later"
    offline = isinstance(error, OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else type(error).__name__
    return f"the Hub cannot be reached ({why})"


def gated(repositories: Sequence[str]) -> str:
    """What to do about repositories whose licence must be accepted first."""
    from huggingface_hub import get_token

    one = len(repositories) == 1
    accept = f"accept {'its licence on its Hub page' if one else 'the licence on each Hub page'}"
    names = f"{joined(repositories)} {'is' if one else 'are'} gated"
    if get_token():
        return f"{names}: {accept} with the account that HF_TOKEN or the stored login belongs to"
    return f"{names}: {accept} and set HF_TOKEN"


def status_of(error: BaseException) -> int | None:
    """Status of the Hub's answer; None where there was none."""
    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def joined(names: Sequence[str]) -> str:
    """Names as a person lists them."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
