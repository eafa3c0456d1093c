"""`EventService.Subscribe` as browsers call it: gRPC-Web through Envoy, each message as it comes."""

import struct

from event_mesh import KEY

from maestro.event.v1.event_pb2 import (
    SUBSCRIPTION_NOTICE_KIND_READY,
    RequestStarted,
    SubscribeRequest,
    SubscribeResponse,
)
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.events import new_event
from maestro_sdk.testing.callers import Caller
from maestro_sdk.testing.mesh import MeshProcess


async def test_events_by_grpc_web(mesh: MeshProcess, publisher: EventPublisher) -> None:
    request = SubscribeRequest(kinds=["request.started"]).SerializeToString()
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": "http://localhost:3000"}
    async with Caller(mesh.url, KEY) as caller:
        path = "/maestro.event.v1.EventService/Subscribe"
        body = struct.pack(">BI", 0, len(request)) + request
        async with caller.session.post(path, data=body, headers=headers) as response:
            assert (response.status, response.content_type) == (200, "application/grpc-web+proto")
            assert response.headers["access-control-allow-origin"] == "http://localhost:3000"

            async def read() -> SubscribeResponse:
                flag, size = struct.unpack(">BI", await response.content.readexactly(5))
                assert flag == 0
                return SubscribeResponse.FromString(await response.content.readexactly(size))

            assert (await read()).notice.kind == SUBSCRIPTION_NOTICE_KIND_READY
            publisher.publish(new_event(RequestStarted(request_id="web"), "request/web", tenant="acme"))
            assert [event.request_started.request_id for event in (await read()).events] == ["web"]
            response.close()
