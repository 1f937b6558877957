"""`/nodes` (ours): the machines, as psmgr last saw them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import select

from api import stamps
from api.call import Caller
from api.lists import listing
from blackstart.model.tables import Node

router = APIRouter()


def view(node: Node) -> dict[str, Any]:
    """Return a machine as the API shows it."""
    return {
        "id": str(node.id),
        "name": node.name,
        "address": node.address,
        "role": node.role,
        "state": node.state,
        "seen_at": stamps.time_of(node.seen_at),
        "created_at": stamps.time_of(node.created_at),
        "updated_at": stamps.time_of(node.updated_at),
    }


@router.get("/nodes")
def node_list(call: Caller) -> JSONResponse:
    """List the machines (operators)."""
    call.require_admin()
    return listing(call, select(Node), {"name": Node.name, "id": Node.id}, lambda nodes: [view(node) for node in nodes])
