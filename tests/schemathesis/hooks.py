"""What the document of the API cannot say, for requests that are meant to be right.

A right request names a broadcaster that exists, a cursor that was given out, a time that is still to come, a URL of the
protocol it is for. A schema has no words for that, so it is put right here before such a request is sent; the check that
right requests are accepted then means something. Requests that are meant to be wrong are sent as they are.
"""

import os

import schemathesis

NODE = os.environ["ONAIR_TEST_NODE"]
BROADCASTER = os.environ["ONAIR_TEST_BROADCASTER"]
ON_AIR, ENDED, TO_BE_STOPPED = os.environ["ONAIR_TEST_STREAMS"].split(",")

LATER = "2999-01-01T00:00:00Z"
SCHEMES = {"hls": "https", "webrtc": "https", "rtmp": "rtmp", "rtsp": "rtsp", "srt": "srt"}
OF_ENDED = ("key_id", "ended_from", "ended_before")


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = context.operation.definition.raw.get("operationId")
    keep_the_node(operation, case)
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    mend_query(operation, case.query)
    if isinstance(case.body, dict):
        mend_body(operation, case.body)
    name_a_stream(operation, case.path_parameters)


def name_a_stream(operation, parameters):
    """Half of the requests name a stream that there is, so that more is seen than "not found"."""
    identity = str((parameters or {}).get("id", "f"))
    if identity[:1] in "89abcdef":
        return
    if operation == "stopStream":
        parameters["id"] = TO_BE_STOPPED
    if operation in ("getStream", "patchStream"):
        parameters["id"] = ENDED if identity[1:2] in "89abcdef" else ON_AIR


def keep_the_node(operation, case):
    """The node whose calls are tested stays in the fleet."""
    if operation == "deleteNode" and case.path_parameters.get("name") == NODE:
        case.path_parameters["name"] = "edge-of-nobody"


def mend_query(operation, query):
    if not query:
        return
    query.pop("cursor", None)
    if operation == "listStreams" and any(name in query for name in OF_ENDED):
        query["state"] = "ended"


def mend_body(operation, body):
    if operation == "createStreamKey":
        # One or the other, and as a rule somebody who is there.
        if body.get("broadcaster_id") is not None or body.get("broadcaster_name") is None:
            body["broadcaster_id"] = BROADCASTER
            body["broadcaster_name"] = None
    if body.get("expires_at") is not None:
        body["expires_at"] = LATER
    if operation == "putNode":
        body["control_url"] = "http://127.0.0.1:9"
        urls = body.get("public_urls") or {}
        for protocol, scheme in SCHEMES.items():
            if urls.get(protocol) is not None:
                urls[protocol] = f"{scheme}://edge.example.org"
