"""Trains a network. `main` runs from top to bottom, in the order in which it is written.

    python train.py                                      the images that come with the project
    python train.py --data my_images --network resnet18
    python train.py --run-dir runs/a --resume            go on where runs/a was stopped
    python train.py @runs/a/config.txt                   repeat runs/a
    torchrun --standalone --nproc-per-node 2 train.py    on two GPUs, or on two processes

Data order, augmentation and dropout are functions of the seed and of `n_iter`, the number of
optimizer steps done, and the learning rate is one of `n_iter`. So a run can be stopped and resumed
at any step, also on another number of processes that divides --accumulate, and ends with the same
bits (1, 2, 4 or 8 processes; one kind of processor or GPU, there with --deterministic).
"""

# ruff: noqa: E402
from engine.errors import StopSignal, begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

import dataset
import options
from engine import devices, distributed, modules, terminal
from engine.data.cache import use_cache
from engine.data.features import use_features
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler, TrainBatchSampler, generator, seed_all
from engine.evaluation import evaluate, forward
from engine.logger import Logger
from engine.meter import Meter
from engine.optimizers import Optimizers, learning_rate
from engine.report.summary import summarize
from engine.run_dir import RunDir
from engine.state import TrainState
from model import Model


def main() -> int:
    # 1. Options (a resumed run starts from those of its config.txt); where and how to compute.
    opt = options.parse()
    device = devices.pick_device(opt.device)
    world = distributed.start(opt, device)  # the processes of torchrun, or this one alone
    amp = devices.Amp(opt.precision, device)
    devices.set_up(opt.deterministic, opt.threads)
    run = RunDir(opt, world)

    # 2. Data sets, the batches of each step, the cache of decoded images (a file beside the data;
    # on a GPU its memory if they fit). test/ is left to test.py. What the model has to know of the
    # data, also statistics, is in train_set.info.
    train_set, val_set = world.broadcast(lambda: dataset.train_and_val(opt))
    terminal.say(dataset.describe(train_set, val_set, opt))
    share = world.share(opt.accumulate)  # the micro-batches of each step that are this process's
    sampler = TrainBatchSampler(
        len(train_set), opt.batch_size, opt.accumulate, opt.epochs, opt.seed, share,
        opt.overfit_one_batch, strata=getattr(train_set, "strata", None),
        weights=getattr(train_set, "weights", None),
    )
    use_cache([train_set, val_set], opt.cache, opt.epochs, device, world)
    noted = run.note_files(train_set, val_set)

    # 3. The model: networks and losses; an optimizer for each network; several GPUs if any.
    seed_all(device, opt.seed, "weights")
    with world.local_rank_first():  # what has to be downloaded is downloaded once
        model = modules.to_device(Model(opt, train_set.info), device, opt.freeze)
    networks = model.networks()
    sample = train_set[0]
    terminal.say(summarize(model, networks, sample))
    modules.check_bf16_gradients(model, sample, amp)
    if opt.compile:
        modules.compile_networks(networks)
    parallel_model = modules.parallelize(model, networks, opt.parallel, amp)
    optimizers = Optimizers(opt, networks, amp.scaler, world)

    # 4. The state of training, which checkpoints keep: resumed, or new, perhaps with the weights of
    # another run.
    processes = None if world.exact else world.size
    environment = devices.environment(amp, train_set, opt.parallel, processes) | noted
    steps = sampler.steps_per_epoch
    state = TrainState(opt, model, optimizers, steps, environment, run.changed_files)
    resumed = opt.resume and run.checkpoints.load_newest(state)
    if opt.weights and not resumed:
        state.start_from(opt.weights)

    # 5. Loading. With --freeze, what precedes the head is computed once for each image.
    train_set, val_set = use_features(run, model, (train_set, val_set), environment, amp)
    train_loader = Loader(train_set, sampler, device, opt.workers, opt.prefetch)
    val_sampler = EvalBatchSampler(len(val_set), opt.batch_size, world.rank, world.size)
    val_loader = Loader(val_set, val_sampler, device, opt.workers, opt.prefetch)
    meter = Meter(device, images=opt.batch_size * opt.accumulate)
    stop = StopSignal(world.all_reduce_max)  # from here on Ctrl-C and the like stop after a step

    # 6. The loop, to the end of all steps or of the patience, or until a signal comes. What is
    # entered here ends in reverse order: the batches first, the run folder and the processes last.
    with (
        world,
        run,
        run.saving(state),  # also if the machine fails
        Logger(run, state, world) as logger,
        train_loader,
        val_loader,
        train_loader.batches(state.n_iter) as batches,
    ):
        while not stop.agreed():
            # Every --val-every epochs, and at the end: validation, of the averaged weights if there
            # are any. The best model so far becomes best.pt, which has both. A pass cut short by a
            # signal says nothing; until it is repeated after --resume, the run is not over.
            if state.validation_is_due():
                with optimizers.averages.in_use():
                    metrics = evaluate(model, val_loader, amp, world, until=stop)
                if stop.agreed():
                    break
                is_best = state.record(metrics)
                logger.validation(metrics, is_best)
                run.checkpoints.save(state, best=is_best)
                meter.restart()
            if state.is_over():
                break

            # One step: the gradients of its micro-batches, of which each process has its share, are
            # averaged; then the weights change (in fp16 not if a gradient overflowed).
            lr = learning_rate(opt, state.n_iter, state.total)
            optimizers.begin_step(state.n_iter, lr, state.head_only)
            losses = []
            for micro_batch in share:
                with meter.waiting:
                    batch = next(batches)
                with meter.computing:
                    random = generator(device, opt.seed, "augment", state.n_iter, micro_batch)
                    batch = dataset.augment(opt, model.info, random, *batch)
                    seed_all(device, opt.seed, "forward", state.n_iter, micro_batch)
                    losses.append(forward(parallel_model, batch, amp))
                    optimizers.backward(losses[-1])
            with meter.computing:
                optimizers.step()
            meter.count_step()
            state.n_iter += 1
            logger.step()

            # Every n steps: the losses of this step, a checkpoint. Once: an image of a batch.
            if state.n_iter % opt.log_every == 0:
                optimizers.check()
                logger.train(losses, lr, meter.rates())
            if state.n_iter == 1:
                logger.first_step(losses, model, train_loader.shown(batch))
            if state.n_iter % opt.save_every == 0:
                run.checkpoints.save(state)
        if not state.is_over():
            run.checkpoints.save(state)
    return run.finish(state, stop)


if __name__ == "__main__":
    run_program(main)
