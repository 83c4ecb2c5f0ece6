"""Tasks by the name a config gives them."""

from jaxvl.tasks.generate import GenerateTask
from jaxvl.tasks.pretrain import PretrainTask

TASKS = {"pretrain": PretrainTask, "generate": GenerateTask}
