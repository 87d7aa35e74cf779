"""Measures where the time of a call goes."""

import time
from statistics import median

from tritonclient.grpc import service_pb2

from teran_client import protocol
from teran_client.channel import Channel
from teran_client.images import ImageRegions
from teran_client.photos import Photo
from teran_client.results import Profile


async def profile(
    channel: Channel,
    info: protocol.ModelInfo,
    caption: str,
    image: ImageRegions | Photo | None,
    calls: int,
) -> Profile:
    """Call `encode_caption`, or match it with an image, and read the server's statistics."""
    inputs: protocol.Arrays = protocol.caption_inputs([caption])
    model, outputs = "encode_caption", ("word_embeddings", "tokens")
    if isinstance(image, Photo):
        inputs |= await protocol.photo_inputs(image)
        model, outputs = "match_photo", ("scores", "region_word_similarity")
    elif image is not None:
        inputs |= protocol.image_inputs([image], info)
        model, outputs = "match", ("scores", "region_word_similarity")

    async def call() -> float:
        """One call; seconds of it spent in this process."""
        started = time.perf_counter()
        request = protocol.infer_request(model, inputs, outputs)
        built = time.perf_counter()
        response = await channel.call("ModelInfer", request)
        answered = time.perf_counter()
        protocol.read_response(response)
        return (built - started) + (time.perf_counter() - answered)

    await call()
    config = await channel.call("ModelConfig", service_pb2.ModelConfigRequest(name=model))
    steps = [step.model_name for step in config.config.ensemble_scheduling.step]
    before, totals, own = await channel.statistics(), [], []
    for _ in range(calls):
        started = time.perf_counter()
        own.append(await call())
        totals.append(time.perf_counter() - started)
    after, models = await channel.statistics(), {}
    for name in steps:
        done, queue, compute = (
            now - then for now, then in zip(after[name], before[name], strict=True)
        )
        if done > 0:  # else another server was asked, or it has started again
            models[name] = (1e3 * queue / done, 1e3 * compute / done)
    total, client = 1e3 * median(totals), 1e3 * median(own)
    inside = sum(queue + compute for queue, compute in models.values())
    return Profile(calls, total, client, max(total - client - inside, 0.0), models)
