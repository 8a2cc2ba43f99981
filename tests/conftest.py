"""Before any test: how threads wait, which is decided before torch is loaded."""

from utils.startup import prepare

prepare(__name__)
