"""One policy's try at one problem: step by step, until the goal, the budget, the environment's end, or its failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.data import blank
from jepa.errors import DataError
from jepa.plan.envs import Arena, Frame
from jepa.plan.starts import Problem, draw_goal, mean_difference

Actions = npt.NDArray[np.float32]  # (n, a)


@dataclass
class Film:
    """What is kept of a trial for pictures."""

    start: Frame
    goal: Frame
    frames: list[Frame] = field(default_factory=list)  # after every step
    distance: list[float] = field(default_factory=list)  # imagined: cost of the plan in force at each of them


class Trial:
    """One try. `done` says when it is over; `result` is what is written of it."""

    def __init__(self, arena: Arena, problem: Problem, budget: int, film: bool = False) -> None:
        self.arena, self.problem, self.budget = arena, problem, budget
        self.steps, self.success, self.ended = 0, False, False
        self.distance: float | None = None
        self.difference: float | None = None  # of the start's frame as drawn and as the data set holds it
        self.error: str | None = None
        self.goal: Frame | None = problem.goal_frame
        self.own_goal: dict[str, Any] | None = None  # the environment's, where the problem has none
        self.film: Film | None = None
        self._filmed = film
        share = arena.config.blank  # of frames after the start
        self._there = blank.shown("blank.plan", problem.seed, problem.index, budget + 1, share)

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self.ended or self.steps >= self.budget

    def begin(self) -> Frame | None:
        """Put the environment into the start and give it the goal; what it looks like then, None if that failed.

        `goal` is the goal's frame from here on. An environment whose goal cannot be judged or drawn fails here.
        """
        p = self.problem
        try:
            goal = p.goal
            if p.goal_frame is None:
                goal, self.goal = draw_goal(self.arena, p)
                self.own_goal = {name: value.tolist() for name, value in goal.items()}
            self.arena.begin(p.reset, p.start, goal if self.arena.config.goal else None)
            frame = self.arena.draw()
            if self.goal is not None and self.goal.shape != frame.shape:
                raise DataError(f"it draws {_size(frame)}, the goal is {_size(self.goal)}")
        except DataError as error:
            self.fail(error)
            return None
        if p.start_frame is not None:
            self.difference = mean_difference(frame, p.start_frame)
        if self._filmed and self.goal is not None:
            self.film = Film(frame, self.goal)
        return frame

    def go(self, actions: Actions) -> Frame | None:
        """Take actions (n, a) one after the other, until it is over; what is seen of it then, None if over.

        That is a black frame where the suite blanks it (`environment.blank`).
        """
        try:
            for action in actions:
                outcome = self.arena.step(action)
                self.steps += 1
                self.distance = outcome.distance
                if self.film is not None:
                    self.film.frames.append(self.arena.draw())
                self.success, self.ended = outcome.success, outcome.ended
                if self.done:
                    return None
            frame = self.arena.draw()
            return frame if self._there[self.steps] else np.zeros_like(frame)
        except DataError as error:
            self.fail(error)
            return None

    def fail(self, error: Exception) -> None:
        """It is over, without success."""
        self.error, self.ended, self.success = str(error), True, False

    def result(self) -> dict[str, Any]:
        """Plain values: success, steps, distance, how it ended, and the error if it failed."""
        how = "error" if self.error else "goal" if self.success else "environment" if self.ended else "budget"
        found: dict[str, Any] = {
            "success": self.success,
            "steps": self.steps,
            "distance": self.distance,
            "ended": how,
        }
        if self.error:
            found["error"] = self.error
        if self.own_goal is not None:
            found["goal"] = self.own_goal
        if self.difference is not None:
            found["start_difference"] = round(self.difference, 5)
        return found


def _size(frame: Frame) -> str:
    return f"{frame.shape[1]} x {frame.shape[0]} pixels"
