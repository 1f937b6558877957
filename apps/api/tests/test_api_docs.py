"""docs/api.md lists every route, and no other."""

import re
from pathlib import Path

from api.main import RESOURCES
from fastapi.routing import APIRoute

PAGE = Path(__file__).resolve().parents[3] / "docs" / "api.md"


def test_every_route_is_documented_once() -> None:
    documented = re.findall(r"^\| `((?:GET|POST|PATCH|PUT|DELETE) /\S*)` \|", PAGE.read_text(), re.MULTILINE)
    routes = [
        f"{method} {route.path}"
        for resource in RESOURCES
        for route in resource.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]
    assert sorted(documented) == sorted(routes)
