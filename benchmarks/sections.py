"""The sections of docs/benchmarks.md: what each bench measures, which of its figures are shown, what they must hold."""

from benchmarks.section import Bound, Row, Section

_PARITY = """Losses of a student trained from the cache against those of one with the teacher beside it, over {steps}
steps, {what}. The first row is the promise; the others show what the encodings lose, the last of them for a teacher
made flat on purpose. timm's is its `LogitDistillationTask` on the same student, teacher and batch. The loss fell from
{{first_loss:.2f}} to {{last_loss:.2f}}."""
_PARITY_ROWS = (
    Row("largest difference, dense float32", "max_loss_difference", form=".2g", bound=Bound("≤", 1e-6)),
    Row("largest difference, dense float16", "differences.float16", form=".2g"),
    Row("largest difference, top 16 of 100 classes, float16", "differences.top16", form=".2g"),
    Row("our KD against timm's", "timm_difference", form=".2g"),
)

_TEACHER = """{model} with random weights at {size} pixels, {amp_dtype}, batches of {batch}, on {device} with {threads}
threads: each layer in the fastest way that a search of {search_seconds:.0f} s found for this device, against the
network as trained, run eagerly in timm's own block order; against the same with every convolution's map forced to
NCHW; and against merging and cropping alone."""
_TEACHER_ROWS = (
    Row(
        "images a second, as trained",
        *("images_per_second", "peer_images_per_second", "ratio"),
        form=".1f",
        bound=Bound("≥", 1.6, "ratio"),
    ),
    Row(
        "images a second, forced to NCHW",
        *("images_per_second", "nchw_images_per_second", "ratio_nchw"),
        form=".1f",
        bound=Bound("≥", 3, "ratio"),
    ),
    Row(
        "images a second, merged alone",
        *("images_per_second", "merged_images_per_second", "ratio_merged"),
        form=".1f",
    ),
    Row("the search's choices beyond the fastest of all", "search_loss", form=".3f", bound=Bound("≤", 0.05)),
)
_TEACHER_NOTE = (
    "Multiplications run at {share_of_matmul:.0%} of the rate of a large matrix product here"
    " ({matmul_gflop_per_second:.0f} GFLOP/s); what the layers must read and write moves at {share_of_copy:.0%} of the"
    " rate of a large copy ({copy_gb_per_second:.0f} GB/s)."
)

SECTIONS = (
    Section(
        "parity",
        "Parity: the cache against the teacher beside the student",
        _PARITY.format(steps="{steps}", what="under the papers' recipe, mixed and erased"),
        _PARITY_ROWS,
        ("parity",),
        note="A test holds the promise too.",
    ),
    Section(
        "parity-crop",
        "Parity under crop and flip",
        _PARITY.format(steps="{steps}", what="under crop and flip alone"),
        _PARITY_ROWS,
        ("parity", "--policy", "crop"),
    ),
    Section(
        "views",
        "Views: the papers' recipe beside timm's transform",
        "RandAugment `rand-m9-mstd0.5-inc1`, random erasing .25 of noise, bicubic, {size} pixels, {images} images of"
        " {image_kb:.0f} kB in the mean, one thread; core-milliseconds a view. The peer is timm's `create_transform`"
        " with the same settings, on PIL images, ending in a normalised float tensor; ours ends in uint8 and is"
        " normalised on the device, so a second peer ends in uint8 as timm's prefetching loader has it, without"
        " erasing. With ten views a decode, timm's are of images decoded once.",
        (
            Row(
                "one view a decode, timm float",
                *("core_ms_per_view", "peer_core_ms_per_view", "speedup"),
                bound=Bound("≥", 1.8, "ratio"),
            ),
            Row("one view a decode, timm uint8", "core_ms_per_view", "peer_uint8_core_ms_per_view", "speedup_uint8"),
            Row(
                "ten views a decode, timm float",
                *("core_ms_per_view_ten_views", "peer_core_ms_per_view_ten_views", "speedup_ten_views"),
                bound=Bound("≥", 4, "ratio"),
            ),
            Row(
                "ten views a decode, timm uint8",
                *("core_ms_per_view_ten_views", "peer_uint8_core_ms_per_view_ten_views", "speedup_uint8_ten_views"),
            ),
        ),
        ("views", "--limit", "120", "--repeats", "5"),
        ratio="peer / ours",
        note="timm could not make {peer_crashes} of its views (posterise to 0 bits, see [views.md](views.md)). The"
        " operations, each by itself at {size} pixels, medians:",
        photographs=True,
        operations=True,
    ),
    Section(
        "caching",
        "What `cache-teacher` adds to the teacher's forward",
        "{images} images of {image_kb:.0f} kB in the mean, rendered at {size} pixels, {views_per_decode} views a"
        " decode: reading, checking, decoding, rendering, encoding, measuring the encoding's loss, and writing. The"
        " peer is timm's `create_transform` (crop, flip), one decode a view, as a trainer does it.",
        (
            Row(
                "core-ms a view",
                *("added_core_ms_per_view", "peer_core_ms_per_view", "ratio"),
                bound=Bound("≤", 2),
            ),
        ),
        ("caching", "--limit", "400"),
        photographs=True,
    ),
    Section(
        "targets",
        "Targets: size, and reading them in epoch order",
        "{rows:,} views of an imaginary {classes}-class teacher ({teacher_top1:.0%} top-1, {retained_mass:.2f} of its"
        " mass in the top {k}), k = {k}, float16. Rows are read as the loader reads them, blocks opened in epoch order"
        " and stacked into batches. The peer is TinyViT's format: fixed records, seek and read by sample.",
        (
            Row(
                "core-us a row",
                *("core_us_per_row", "peer_core_us_per_row", "ratio"),
                form=".1f",
                bound=Bound("≤", 15),
            ),
            Row("bytes a view", "bytes_per_view", "peer_bytes_per_view", "size_ratio", form=".1f"),
        ),
        ("targets",),
        note="Ours also reads the label's log-probability and checks a checksum on every chunk; the peer's format has"
        " neither.",
    ),
    Section(
        "step",
        "A student's step from the cache",
        "{student} at {size} pixels, batches of {batch}, loading included, {steps} steps: KD from a top-16 cache of"
        " {classes} classes against cross entropy alone on the same views in the same order, step by step in turn. The"
        " ratio is the median of the pairs.",
        (
            Row(
                "core-ms a step",
                *("core_ms_with_cache", "core_ms_alone", "ratio_spread"),
                form=".0f",
                bound=Bound("≤", 1.05, "ratio"),
            ),
        ),
        ("step",),
    ),
    Section(
        "teacher",
        "A teacher's forward",
        _TEACHER,
        _TEACHER_ROWS,
        ("teacher", "--model", "slak_tiny"),
        note=_TEACHER_NOTE,
    ),
    Section(
        "teacher-bf16",
        "A teacher's forward in bfloat16",
        _TEACHER,
        _TEACHER_ROWS[:3],
        ("teacher", "--model", "slak_tiny", "--amp-dtype", "bfloat16"),
        note=_TEACHER_NOTE,
    ),
    Section(
        "workers",
        "Workers: dask against raw processes",
        "`cache-teacher` on {workers} dask workers, one thread each, against as many processes that run the same"
        " network ({teacher}, random weights) on tensors that lie ready, and do nothing else: {samples:,} samples at"
        " {size} pixels in {tasks} tasks, wall time. Ours reads, decodes, renders, encodes and commits on the same"
        " cores.",
        (
            Row(
                "samples a second",
                *("samples_per_second", "peer_samples_per_second", "ratio"),
                form=".3g",
                bound=Bound("≥", 0.95, "ratio"),
            ),
        ),
        ("workers",),
    ),
    Section(
        "cluster",
        "A simulated cluster",
        "A simulated run of {tasks:,} tasks on {workers} workers: the teacher is a sleep of {seconds_per_task:.2f} s,"
        " its measured time. Everything else is the real thing. Busy is the share of the workers' time in which the"
        " teacher sleeps; the scheduler's memory is looked at when a tenth of the tasks is done, and at the end.",
        (
            Row("workers busy", "busy", form=".3f", bound=Bound("≥", 0.95)),
            Row("the scheduler's memory early, MB", "scheduler_mb_early", form=".0f"),
            Row("the scheduler's memory late, MB", "scheduler_mb_late", form=".0f"),
        ),
        ("cluster",),
    ),
    Section(
        "memory",
        "Memory of `cache-teacher`",
        "Peak resident memory of the whole command at {tasks} tasks against its peak at one: it must not grow with the"
        " work. A task is a shard of {samples_a_task} made-up photographs in {views} views of {size} pixels; the"
        " teacher is a linear layer. MB are 2^20 bytes.",
        (
            Row(
                "peak at many tasks (ours) and at one (peer), MB",
                *("peak_mb_many", "peak_mb_one", "ratio"),
                form=".0f",
                bound=Bound("≤", 1.10, "ratio"),
            ),
        ),
        ("memory",),
    ),
    Section(
        "opening",
        "Opening a large index",
        "An index of {samples:,} made-up samples, its files in the system's cache: opened in a fresh process, and by"
        " {readers} processes that touch every page at the same time. Resident memory counts the pages of the index"
        " that were touched, private memory doesn't. MB are 2^20 bytes.",
        (
            Row("opening, seconds", "seconds", bound=Bound("<", 2)),
            Row("private memory added, MB", "added_mb", form=".0f", bound=Bound("<", 600)),
            Row("resident memory added, MB", "resident_mb", form=".0f", bound=Bound("<", 600)),
            Row("every page touched: share of the memory, MB a process", "shared_mb_each", form=".0f"),
            Row("every page touched: as if alone, MB a process", "resident_mb_each", form=".0f"),
            Row("labels checked, fingerprint and Loader, seconds", "start_seconds"),
            Row("an epoch's order, seconds", "epoch_order_seconds"),
            Row("an epoch's order, peak MB", "epoch_order_mb", form=".0f"),
        ),
        ("opening",),
    ),
)
