"""The scripts that people write today for such an API. `krea-batch bench --compare` compares the engine with them.

requests_client  the calls that the scripts with requests share: retries with backoff, a file of each job's progress
thread_pool      requests in a pool of threads
asyncio_tasks    aiohttp, a task for each job
document_demo    the example of the API document for each job, which starts again with a POST
celery_worker    a Celery task for each job
ray_stage        a stage of a Ray Dataset

Each is what a competent engineer writes in an afternoon. They respect the rate limit, retry 429, 5xx and lost
connections with backoff, and write images atomically. All but the demo write each request_id into a file, and
continue with it when they are started again. They are only run against the simulator, in processes of their own:

    BENCH_RUN='{"gateway": "http://127.0.0.1:8787", …}' python -m krea_batch.benchmark.scripts.thread_pool
"""
