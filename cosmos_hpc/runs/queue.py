"""The jobs of a run in a backend's queue, at one moment."""

from __future__ import annotations

from msgspec import Struct, field


class StageQueue(Struct):
    """Jobs of a stage in the queue.

    Attributes:
        counts: jobs and array tasks, by the queue's word for their state.
        running: whether one has begun.
        after: what pending jobs wait for the end of, in words; empty where that is nothing known.
        waiting_for: why jobs are pending beside that, in the queue's words, and when the first may
            begin; empty where none is.
        tasks: numbers of the stage's tasks that they work on.
    """

    counts: dict[str, int] = field(default_factory=dict)
    running: bool = False
    after: str = ""
    waiting_for: str = ""
    tasks: set[int] = field(default_factory=set)


class Queue(Struct):
    """What is known of a run's jobs without looking into its folder.

    Attributes:
        stages: those that have jobs in the queue.
        problem: why the queue says nothing; empty where it does.
        reachable: whether this machine has the commands to ask it at all.
        driven: whether a submit is alive that works through the stages itself.
    """

    stages: dict[str, StageQueue] = field(default_factory=dict)
    problem: str = ""
    reachable: bool = True
    driven: bool = False

    def stage(self, name: str) -> StageQueue:
        """Jobs of a stage."""
        return self.stages.get(name, StageQueue())

    @property
    def working(self) -> bool:
        """Whether the run is being worked on, or will be, as far as is known."""
        return self.driven or bool(self.stages)

    @property
    def alive(self) -> bool:
        """Whether a process or job of the run is alive."""
        return self.driven or any(stage.running for stage in self.stages.values())

    def at_work(self, stage: str, tasks: int) -> dict[int, str]:
        """Of the ``tasks`` tasks of a stage those that jobs in the queue have begun and not ended.

        Returns:
            The id of the job of each.
        """
        return {}

    def replaces(self, stage: str, task: int) -> bool:
        """Whether a task is queued again since its last attempt, whose reason is outdated."""
        return False

    def deaths(self, stage: str, missing: list[int]) -> dict[int, str]:
        """What is known of tasks that began, are not done, and have left no reason."""
        return {}

    def advice(self, done: bool, begun: bool, retry: str) -> str:
        """What a person may want to do about the queue; empty for nothing.

        Args:
            done: whether the run is.
            begun: whether it was ever submitted.
            retry: the command that submits what is missing.
        """
        return f"what works on it is not known: {self.problem}" if self.problem else ""
