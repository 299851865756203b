"""timm's training idiom over a cache: its model, optimizer, schedule, mixed precision and weight average.

python examples/timm_script.py runs/train.index runs/cache.zarr --loss dist --amp --model-ema
"""

import argparse

import torch
from timm import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, NativeScaler

import kdpipe


def train_one_epoch(loader, model, loss_fn, optimizer, scheduler, scaler, ema, amp_dtype, clip_grad):  # type: ignore[no-untyped-def]
    """timm's function of this name; returns the mean loss."""
    model.train()
    losses, device = AverageMeter(), loader.device
    updates = loader.epoch * len(loader)
    for number, batch in enumerate(loader, start=updates):
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            loss = loss_fn(model(batch.images), batch)  # losses compute in float32 by themselves
        optimizer.zero_grad()
        scaler(loss, optimizer, clip_grad=clip_grad, parameters=model.parameters())
        scheduler.step_update(number + 1)
        if ema is not None:
            ema.update(model, step=number + 1)
        losses.update(loss.item(), len(batch))
    return losses.avg


def main(args: argparse.Namespace) -> kdpipe.results.Scores:
    """Train, and score the averaged weights."""
    loader = kdpipe.CachedLoader(args.index, args.cache, args.batch_size, workers=args.workers, device=args.device)
    model = create_model(args.model, num_classes=loader.num_classes).to(
        loader.device, memory_format=torch.channels_last
    )
    optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    scaler, ema = NativeScaler(device=loader.device.type), ModelEmaV3(model, decay=0.999) if args.model_ema else None
    loss_fn, amp_dtype = kdpipe.create_loss(args.loss), torch.bfloat16 if args.amp else None
    with loader:
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            loss = train_one_epoch(loader, model, loss_fn, optimizer, scheduler, scaler, ema, amp_dtype, args.clip_grad)
            print(f"epoch {epoch + 1}/{epochs}: loss {loss:.4f}, lr {optimizer.param_groups[0]['lr']:.3g}")
        scores = kdpipe.evaluate(model if ema is None else ema.module, args.val or args.index, like=loader)
    print(scores)
    return scores


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, with timm's names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("cache")
    parser.add_argument("--val", help="index of the validation shards; default: the training index")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--loss", default="kd", help="see kdpipe losses, of those that take logits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--opt", default="adamw")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--clip-grad", type=float)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--model-ema", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(parse())
