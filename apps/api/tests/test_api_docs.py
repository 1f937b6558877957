"""docs/api.md lists every route, and no other."""

import re
from pathlib import Path

from api.main import RESOURCES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "api.md"


def test_every_route_is_documented_once() -> None:
    documented = re.findall(r"^\| `((?:GET|POST|PATCH|PUT|DELETE) /\S*)` \|", PAGE.read_text(), re.MULTILINE)
    routes = [f"{method} {route.path}" for one in RESOURCES for route in one.router.routes for method in route.methods]  # type: ignore[attr-defined]
    assert sorted(documented) == sorted(routes)
