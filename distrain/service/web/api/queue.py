"""Shows the queue and the devices by REST."""

import time

from fastapi import APIRouter

from distrain.service.devices import list_devices
from distrain.service.table import read_queue
from distrain.service.web.api.json_answers import StrictJson
from distrain.service.web.api.models import Device, QueuedRun
from distrain.service.web.site import TheSite

router = APIRouter(tags=["queue"])


@router.get("/queue", response_model=list[QueuedRun], operation_id="listQueue")
def list_queue(site: TheSite) -> StrictJson:
    """List the queue as `distrain queue --json` does: the runs that train first, then those that wait, in order."""
    return StrictJson(read_queue(site.root, now=time.time()))


@router.get("/devices", response_model=list[Device], operation_id="listDevices")
def list_all_devices(site: TheSite) -> StrictJson:
    """List the GPUs and CPU slots of this machine as `distrain devices --json` does, with who has them."""
    return StrictJson([device.as_json() for device in list_devices(slots=site.slots)])
