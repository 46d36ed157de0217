"""gymnasium-robotics' U-shaped PointMaze seen from straight above, without the marker of its goal.

Its own camera looks from the side, where walls hide the ball, and draws the goal of the moment into every frame: a goal
picture of a recorded episode then shows another goal than the frames it is compared with.

    {env: jepa/PointMaze_UMaze-v0, modules: [gymnasium_robotics, jepa.data.envs.pointmaze]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
from gymnasium_robotics.envs.maze.maps import U_MAZE
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

_SEEN = 4.4  # metres from edge to edge of the picture: the U is 3 wide, its walls begin there
_CAMERA = {"azimuth": 90.0, "elevation": -90.0, "distance": 1.207 * _SEEN, "lookat": (0.0, 0.0, 0.0)}  # sees 45 degrees


def umaze(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """The environment; success is coming within 0.45 m of its goal.

    Args:
        kwargs: of ``PointMazeEnv``, such as width and height of the pictures.
    """
    env: Any = PointMazeEnv(maze_map=U_MAZE, **kwargs)
    Path(env.tmp_xml_file_path).unlink(missing_ok=True)  # read by now; it would stay in the temporary folder for good
    env.point_env.mujoco_renderer.default_cam_config = _CAMERA
    env.point_env.model.site("target").rgba[3] = 0.0
    return env  # type: ignore[no-any-return]


gymnasium.register("jepa/PointMaze_UMaze-v0", umaze, max_episode_steps=300)
