"""Trains a network. `main` runs from top to bottom, in the order in which it is written.

    python train.py                                      the images that come with the project
    python train.py --data my_images --network resnet18
    python train.py --run-dir runs/a --resume            go on where runs/a was stopped
    python train.py @runs/a/config.txt                   repeat runs/a

`n_iter`, the number of optimizer steps done, is the only progress there is: which images come
next, how they are augmented, dropout and the learning rate are functions of (seed, n_iter).
"""

from engine.errors import StopSignal, run_program  # first: Ctrl-C ends in one line from here on

# isort: split
import dataset
import options
from engine import devices, modules
from engine.cache import use_cache
from engine.evaluation import evaluate, forward
from engine.loader import Loader
from engine.logger import Logger
from engine.meter import Meter
from engine.optimizers import Optimizers, learning_rate
from engine.run_dir import RunDir
from engine.sampler import EvalBatchSampler, TrainBatchSampler, generator, seed_all
from engine.state import TrainState
from model import Model


def main() -> int:
    # 1. Options; where and how to compute.
    opt = options.parse()
    device = devices.pick_device(opt.device)
    amp = devices.Amp(opt.precision, device)
    devices.set_up(opt.deterministic)
    run = RunDir(opt)

    # 2. Data: the samples, and which of them make up which step. test/ is left to test.py.
    train_set, val_set = dataset.train_and_val(opt)
    sampler = TrainBatchSampler(
        len(train_set), opt.batch_size, opt.accumulate, opt.epochs, opt.seed
    )

    # 3. The model: networks and losses; an optimizer for each network; several GPUs if any.
    seed_all(device, opt.seed, "weights")
    model = modules.place(Model(opt, train_set.info), device)
    networks = model.networks()
    print(modules.summarize(model, networks, train_set[0]))
    if opt.compile:
        modules.compile_networks(networks)
    parallel_model = modules.parallelize(model, networks, opt.parallel, amp)
    optimizers = Optimizers(opt, networks, amp.scaler)

    # 4. All that a checkpoint holds. A resumed run starts from the newest one.
    environment = devices.environment(amp, train_set, opt.parallel)
    state = TrainState(opt, model, optimizers, sampler.steps_per_epoch, environment)
    if opt.resume:
        run.checkpoints.load_newest(state)

    # 5. Whatever loads the batches, watches the run and writes about it.
    use_cache([train_set, val_set], opt.cache, opt.epochs, device)
    train_loader = Loader(train_set, sampler, device, opt.workers, opt.prefetch)
    val_sampler = EvalBatchSampler(len(val_set), opt.batch_size)
    val_loader = Loader(val_set, val_sampler, device, opt.workers, opt.prefetch)
    logger, stop = Logger(run.path, state), StopSignal()
    meter = Meter(device, opt.batch_size * opt.accumulate, train_loader.shares_cores)

    # 6. The loop. It ends when all steps are done, when patience is, or by a signal after a step.
    with run, logger, train_loader, val_loader, train_loader.batches(state.n_iter) as batches:
        while not stop:
            # Every x epochs: validation. A better model than all before becomes best.pt. A pass
            # that a signal cuts short says nothing; it is due again when the run is resumed.
            if state.validation_is_due():
                metrics = evaluate(model, val_loader, amp, until=stop)
                if stop:
                    break
                better = state.record(metrics[model.monitor])
                logger.validation(metrics, better)
                run.checkpoints.save(state, best=better)
                meter.restart()
            if state.is_over():
                break

            # One step: the gradients of its micro-batches are added up, then the weights change.
            lr = learning_rate(opt, state.n_iter, state.total)
            optimizers.zero_grad(state.n_iter, lr)
            losses = []
            for micro_batch in range(opt.accumulate):
                with meter.waiting():
                    batch = next(batches)
                with meter.computing():
                    random = generator(device, opt.seed, "augment", state.n_iter, micro_batch)
                    batch = dataset.augment(opt, random, *batch)
                    seed_all(device, opt.seed, "forward", state.n_iter, micro_batch)
                    losses.append(forward(parallel_model, batch, amp))
                    optimizers.backward(losses[-1])
            with meter.computing():
                optimizers.step()
            meter.count_step()
            state.n_iter += 1
            logger.step()

            # Every n steps: a point of the curves, an image of the last micro-batch, a checkpoint.
            if state.n_iter % opt.log_every == 0:
                optimizers.check()
                logger.train(losses, lr, meter.rates())
            if (state.n_iter - 1) % opt.image_every == 0:
                logger.image("batch", model.image_grid(*batch))
            if state.n_iter % opt.save_every == 0:
                run.checkpoints.save(state)
        if stop:
            run.checkpoints.save(state)
    return run.finish(state, stop, model.monitor)


if __name__ == "__main__":
    run_program(main)
