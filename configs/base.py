# SPDX-License-Identifier: Apache-2.0
"""Every field that a stage reads, with the values of Stable Diffusion 2 at 256.

A run's own config starts from here and sets what it decides. In any string,
{workdir} is the folder given by --workdir.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
  if arg:
    raise ValueError(f"configs/base.py takes no argument, got {arg!r}")
  config = ConfigDict()
  config.seed = 17
  config.cpu_devices = 1  # Where there is no accelerator: parts of a batch.
  config.name = "images"  # The first part of the names of data files.

  config.catalogue = ConfigDict()
  # A folder of images with metadata.jsonl or .csv, of Parquet files or of
  # WebDataset tars; "hf://datasets/OWNER/NAME"; a data set of TFDS.
  config.catalogue.source = ""
  config.catalogue.format = ""  # folder, parquet, webdataset, tfds; "": look.
  config.catalogue.url_encoded = False  # Author, title, tags: "Canon+EOS".
  config.catalogue.folder = "{workdir}/catalogue"
  config.catalogue.collection = "commercial"  # Or "non-commercial".
  config.catalogue.licence = ""  # For rows that state none: an id or a URL.
  config.catalogue.allow = ()  # ("CC0-1.0", "CC-BY"): in place of collection.
  config.catalogue.filters = ()  # By the source's columns: ("nsfw<0.3",).
  config.catalogue.opt_out = ""  # A list: data/opt_out.py says of what.
  config.catalogue.min_side = 256  # Smaller images are left out.
  config.catalogue.max_pixels = 2**27  # Larger ones are not decoded.
  config.catalogue.records_per_shard = 4096
  config.catalogue.runner = "here"  # Or "beam": Apache Beam makes the shards,
  config.catalogue.beam_options = ()  # ("--runner=DataflowRunner", ...).
  config.catalogue.columns = ConfigDict(  # Ours: the name in the source.
    dict(
      file="file_name",  # In the list of a folder of images,
      image="jpg",  # and elsewhere the bytes themselves.
      title="title",
      author="author",
      tags="usertags",
      licence_url="licenseurl",
      licence_name="licensename",
      page_url="pageurl",
      photo_id="photoid",
      sha256="sha256",
      split="split",
    )
  )

  config.deduplicate = ConfigDict()
  config.deduplicate.images = "{workdir}/catalogue"
  config.deduplicate.signatures = "{workdir}/signatures"
  config.deduplicate.duplicates = "{workdir}/duplicates.jsonl"
  config.deduplicate.folder = "{workdir}/deduplicated"
  config.deduplicate.threshold = 36  # Of 256 bits; -1 for exact copies only.
  config.deduplicate.crops = True  # Look for parts of images, too.
  config.deduplicate.max_pixels = 2**27  # As in catalogue.max_pixels.
  config.remove = ConfigDict()
  config.remove.opt_out = ""  # A list, as catalogue.opt_out.
  # The catalogue, then all that was made beside it, in the order it was made.
  config.remove.folders = (
    "{workdir}/catalogue",
    "{workdir}/captions",
    "{workdir}/latents",
  )

  config.subset = ConfigDict()
  config.subset.count = 10_000
  config.subset.by = ""  # Or "licence": each with its share.
  config.subset.split = "train"  # The other splits are kept whole.
  config.subset.folder = "{workdir}/subset"
  config.subset.folders = config.remove.folders  # Each is one in .folder.
  config.subset.records_per_shard = 4096

  config.caption = ConfigDict()
  config.caption.images = "{workdir}/catalogue"
  config.caption.folder = "{workdir}/captions"
  config.caption.name = "title"  # The features: caption_title, flags_title.
  # "metadata": templates; "blip2" and "llava": networks that look; "join":
  # captions of others, from a file.
  config.caption.captioner = "metadata"
  config.caption.templates = ("a photo of {title}",)
  config.caption.clean = False  # No names of files, addresses, HTML in them.
  config.caption.vocabulary = 0  # Over 0: a tokenizer is trained on them.
  config.caption.model = ""  # "" for blip2-opt-2.7b and llava-1.5-7b.
  config.caption.tokenizer = ""  # "" for the one beside the model.
  config.caption.batch_size = 64  # Of networks, on each host.
  config.caption.dtype = "bfloat16"  # Of weights and computation.
  config.caption.prompt = ""  # "" for the captioner's own.
  config.caption.resize = ""  # squash, crop, pad; "" for the captioner's own.
  config.caption.middle = 0  # 512: the middle square at most so large, first.
  config.caption.decoding = "greedy"  # Or "beam", "nucleus".
  config.caption.length = 30  # Most tokens; min_length: at least.
  config.caption.min_length = 0
  config.caption.beams = 5
  config.caption.length_penalty = 1.0
  config.caption.temperature = 1.0  # This and the next two: of "nucleus".
  config.caption.top_k = 0  # 0 for no limit.
  config.caption.top_p = 0.9
  # Of this host's devices. data=-1: weights on each; tensor: split over some.
  config.caption.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
  config.caption.join = ConfigDict()
  config.caption.join.file = ""  # A Parquet file, or a folder of them.
  config.caption.join.by = "photo_id"  # Or "key".
  config.caption.join.column = "photoid"  # That has it in the file.
  config.caption.join.caption = "caption"  # The column of captions.
  config.caption.flags = ConfigDict()  # What is noted of captions, and counted.
  config.caption.flags.min_words = 3  # Fewer are no sentence.
  config.caption.flags.tokenizer = ""  # The text encoder's, to see how many
  config.caption.flags.tokens = 77  # captions are longer than this.

  config.encode = ConfigDict()
  config.encode.images = "{workdir}/catalogue"
  config.encode.captions = "{workdir}/captions"  # Or "": images alone.
  config.encode.caption = "caption_title"
  config.encode.refuse = ()  # ("empty", "no_caption"): flags of captions.
  config.encode.folder = "{workdir}/latents"
  config.encode.size = 256
  config.encode.sizes = ()  # (256, 512): one pass, to folder_256, folder_512.
  config.encode.buckets = False  # A frame of about that area, by aspect ratio.
  config.encode.bucket_step = 0  # Of frames' sides; 0: PixArt's 40 frames.
  config.encode.crop = "centre"  # Or "random", by seed and key.
  config.encode.enlarge = False  # Images under their frame, else left out.
  config.encode.latents = True  # Of model.vae.
  config.encode.std = True  # Or the mean alone: half the bytes.
  config.encode.vqgan = ""  # A network: its codes are stored, too.
  config.encode.clip = ""  # And the embedding of the crop by its image tower.
  config.encode.tokens = 77
  config.encode.text_states = False  # Of model.text, if it is a T5.
  config.encode.label = ""  # A feature of images that is a class, "title" say.
  config.encode.batch_size = 64

  # A network is a preset ("SD2"), a row of models/published.py ("sd2/vae"), a
  # folder, or a group of fields. Rows and folders bring their weights.
  config.model = ConfigDict(type_safe=False)  # A group may be a name.
  config.model.unet = "SD2"
  config.model.transformer = ""  # In place of it: PixArt, or DiT with text="".
  config.model.text = "sd2/text"
  config.model.text_2 = ""  # SDXL's second tower.
  config.model.vae = "sd2/vae"
  config.model.tokenizer = "sd2/tokenizer"
  config.model.tokenizer_2 = ""  # Of the second tower; "" for the same.
  config.model.zero_empty = False  # Zeros for an empty caption (SDXL).
  config.model.clip = ""  # CLIP-GEN's networks: both towers,
  config.model.vqgan = ""  # images as codes and back,
  config.model.prior = ""  # embeddings to codes,
  config.model.discriminator = "PATCHES_70"  # and the judge of decoders.
  config.model.classes = "{workdir}/classes.txt"  # Of DiT, a name a line.
  config.model.clean = False  # T5's rules: data/clean_caption.py.
  # What PixArt reads for no caption: T5's states of "", or "buffer", a random
  # one of its own (transformer.null_tokens), as its authors train.
  config.model.null_caption = "empty"
  config.model.prediction = "eps"  # Or "v", "x0".
  config.model.schedule = ConfigDict(dict(kind="scaled_linear", steps=1000))
  config.model.schedule.update(beta_start=0.00085, beta_end=0.012)
  config.model.schedule.zero_snr = False

  config.train = ConfigDict()
  config.train.task = "latent_diffusion"
  config.train.folders = ("{workdir}/latents",)  # Aligned dataset folders.
  config.train.split = "train"
  config.train.checkpoints = "{workdir}/checkpoints"
  config.train.init = ""  # An exported folder; PixArt's may be a DiT.
  config.train.steps = 550_000
  config.train.batch_size = 2048
  config.train.accumulate = 1
  config.train.lr = 1e-4
  config.train.lr_batch = 0  # lr is for such batches: times the root of more.
  config.train.schedule = "constant"  # Or "cosine", "linear".
  config.train.warmup = 10_000
  config.train.b1 = 0.9
  config.train.b2 = 0.999
  config.train.eps = 1e-8
  config.train.weight_decay = 0.01
  config.train.decay = "matrices"  # Or "all", as the paper's code does.
  config.train.clip = 1.0  # Largest norm of the gradient; 0 for no limit.
  config.train.ema_decay = 0.9999
  config.train.ema_start = 0
  config.train.ema_warmup = False
  config.train.dtype = "bfloat16"  # Of the computation; weights are float32.
  config.train.remat = "none"  # Or "dots", "attention", "full".
  config.train.recompute = True  # Norms and activations, in the backward pass.
  config.train.attention = "auto"  # "einsum": no kernels of the device's own.
  config.train.own_convolutions = True  # By products and tiles, where faster.
  config.train.moments = "float32"  # Or "bfloat16": Adam's first moment.
  config.train.spread = True  # Moments and average split over all devices.
  config.train.log_every = 50
  config.train.checkpoint_every = 1000
  config.train.keep = 3  # The newest checkpoints,
  config.train.keep_every = 0  # and of those at multiples of so many steps all.
  config.train.preview_every = 5000
  config.train.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
  config.train.devices = 0  # Of all hosts, if other numbers are to be refused.
  config.train.program = ""  # A file of `cc-jax plan`: the step, compiled.

  config.slice = "v4-128"  # That is planned for; "2xv4-128" for two of them.
  config.search = False  # For the largest batch that fits.
  config.ablate = False  # Each step of the next, from the first on: how fast.
  config.ablation_steps = ()  # (0, 5): those that are measured now; (): all.
  # "NAME: field=value field=value": what is set, one after the other, as in
  # CommonCanvas's figure 6; it began with 16 bits, too, and not with einsum.
  config.ablation = (
    "naive: latent_diffusion.from_images=true train.attention=einsum "
    "train.own_convolutions=false train.recompute=false train.spread=false "
    "train.moments=float32",
    "convolutions by products and tiles: train.own_convolutions=true",
    "latents encoded before: latent_diffusion.from_images=false",
    "kernels for attention: train.attention=auto",
    "norms recomputed, not kept in float32: train.recompute=true",
    "moments and average spread: train.spread=true",
    "first moment bfloat16: train.moments=bfloat16",
  )
  config.plan = ConfigDict()
  config.plan.of = "train"  # Or "caption".
  config.plan.result = "{workdir}/plan.json"
  config.plan.program = ""  # Where to save the compiled step for `train`.
  config.plan.text = ""  # Where to write the compiled program's text.
  config.plan.images = 70_000_000  # To caption.
  config.plan.price = 0.0  # Dollars an hour and chip; 0 for the list price.
  config.plan.watts = 0.0  # Of a chip; 0 for what its maker measured, if known.
  config.plan.pue = 1.1  # Watts that the data centre draws for each of those.
  config.plan.kg_co2_per_kwh = 0.37  # Of the grid; 0.37 is the United States'.
  config.plan.published = ConfigDict(dict(what="", chip="", watts=0.0))
  config.plan.published.update(days=0.0, dollars=0.0)  # Of others; or nobody.

  config.latent_diffusion = ConfigDict()
  config.latent_diffusion.train_text = False
  config.latent_diffusion.from_images = False  # Encoded in the step.
  config.latent_diffusion.drop_caption = 0.1
  config.latent_diffusion.offset_noise = 0.0
  config.latent_diffusion.min_snr_gamma = 0.0  # 0 for plain squared error.
  config.latent_diffusion.stratified = False
  config.latent_diffusion.snr_loss = False  # Of x0 at low noise: PixArt's.
  config.latent_diffusion.padded = False  # Buckets as one shape, with a mask.
  config.latent_diffusion.init_class = "null"  # Of a DiT to start from: "zero".

  config.autoencoder = ConfigDict()  # Of the tasks autoencoder and vqgan.
  config.autoencoder.size = 256
  config.autoencoder.kl_weight = 1e-6
  config.autoencoder.lpips_weight = 0.0
  config.autoencoder.lpips = ""  # A folder of its weights; models/lpips.py.
  config.autoencoder.gan_weight = 0.0  # 0 for no discriminator.
  config.autoencoder.gan_start = 0  # The step from which it is there.

  config.vqgan = ConfigDict()
  config.vqgan.beta = 0.25
  # Which term it weighs: "codebook", as published weights were trained, or
  # "commitment", as the paper has it.
  config.vqgan.beta_on = "codebook"
  config.vqgan.codebook_weight = 1.0
  config.vqgan.ema_decay = 0.0  # 0.99: entries are means of what chose them.
  config.vqgan.restart = 0.0  # Entries used less often a batch begin anew.

  config.contrastive = ConfigDict()
  config.contrastive.largest_scale = 100.0  # Of the cosines.

  config.prior = ConfigDict()
  config.prior.dropout = 0.0
  config.prior.noise = 0.0  # On embeddings, as a part of their length.
  config.prior.drop_condition = 0.0  # For guidance: so many are zeros.
  config.prior.corrupt = 0.0  # So many codes that are read are random.
  config.prior.clip_weight = 0.0  # Of what CLIP sees in the decoded codes.

  config.sample = ConfigDict()
  config.sample.prompts = ("a photo of a dog", "a photo of a cat")
  config.sample.each = 4  # Images a prompt.
  config.sample.sampler = "dpm_solver_pp"
  config.sample.steps = 20
  config.sample.guidance = 3.0
  config.sample.rescale = 0.0
  config.sample.channels = 0  # That are guided; 0 for all. DiT's code: 3.
  config.sample.size = 256
  config.sample.aspect = ""  # "16:9", "0.56": of about the area of the size.
  config.sample.height = 0  # Or both in pixels, in place of size and aspect.
  config.sample.width = 0
  config.sample.binning = True  # Made at the nearest bucket, and resized.
  config.sample.batch_size = 16
  config.sample.temperature = 1.0  # This and the next six: of CLIP-GEN.
  config.sample.top_k = 500  # 0 for no limit; 1 for the likeliest code.
  config.sample.top_p = 0.95
  config.sample.candidates = 1  # The one that CLIP likes best is taken.
  config.sample.gap = "none"  # Or "shift", "nearest": pipelines/clip_gap.py.
  config.sample.gap_records = 4096  # Training images that it looks at.
  config.sample.gap_nearest = 8
  config.sample.gap_captions = ""  # A side folder, for "shift" and its number.
  config.sample.part = "ema"  # Or "params".
  config.sample.step = -1  # A checkpoint; -1 for the latest.
  config.sample.picture = "{workdir}/samples.png"

  config.evaluate = ConfigDict()
  config.evaluate.metrics = "{workdir}/metrics.json"
  config.evaluate.split = "validation"
  config.evaluate.batch_size = 64
  config.evaluate.images = "{workdir}/catalogue"  # Real ones, with titles.
  config.evaluate.validation_loss = True  # Needs latents and a checkpoint.
  # Prompts of which images are made and measured; "" for none. coco30k, parti,
  # a file, a folder: data/prompt_sets.py.
  config.evaluate.prompts = ""
  config.evaluate.count = 0  # The first so many of them; 0 for all.
  # "": train.checkpoints. A run's work folder, an export, "diffusers:NAME".
  config.evaluate.model = ""
  config.evaluate.guidance = ()  # (1.0, 2.0): a sweep; (): sample.guidance.
  config.evaluate.folder = "{workdir}/evaluation"  # Images, table and curve.
  config.evaluate.layout = ""  # geneval, hpsv2, dpg, compbench: a copy for it.
  config.evaluate.each = 1  # Images a prompt, for these.
  # Real images, named as prompts are; an .npz of mu, sigma; "": the prompts'.
  config.evaluate.real = ""
  config.evaluate.cache = "{workdir}/features"  # Of real and generated images.
  # Networks by name, "" or () for none.
  config.evaluate.inception = "inception-fid"
  config.evaluate.resize = ("clean",)  # legacy_tensorflow, legacy_pytorch.
  config.evaluate.blur = (0.0,)  # FID-k: (0.0, 1.0, 2.0, 4.0, 8.0).
  config.evaluate.clip_fid = "clip-vit-b32"
  config.evaluate.clip_score = ("clip-vit-b16",)
  config.evaluate.cmmd = "clip-vit-l14-336"
  config.evaluate.caption_score = ""  # Weights of a captioner, one of the kind
  config.evaluate.captioner = "blip2"  # or "llava", computing in caption.dtype.
  config.evaluate.training = ""  # A catalogue that copies are looked for in.
  config.evaluate.training_split = "train"
  config.evaluate.nearest = 24  # Of the images most like it, how many are kept.
  config.evaluate.copy_bits = 36  # Of 256, in which copies differ at most.
  config.evaluate.timesteps = (100, 300, 500, 700, 900)  # Of validation_loss.
  config.evaluate.draws = 1000  # Of the bootstrap.
  config.evaluate.kid_subsets = 100
  config.evaluate.kid_size = 1000
  config.evaluate.recognise = ConfigDict()
  config.evaluate.recognise.each = 0  # Images a title; 0 for none.
  config.evaluate.recognise.templates = ("a photo of {title}",)
  config.evaluate.recognise.side = 8  # Pixels a side that are compared.
  config.evaluate.recognise.also = ()  # config.sample's: ("gap=shift,size=8",).

  config.report = ConfigDict()
  config.report.kind = "dataset"  # Or "run", "pairwise".
  config.report.images = "{workdir}/catalogue"
  config.report.captions = ""  # A side folder of captions, or none.
  config.report.duplicates = "{workdir}/duplicates.jsonl"  # Where there is one.
  config.report.seconds = (  # How long stages waited for what, as they noted.
    "{workdir}/caption.seconds.json",
    "{workdir}/encode.seconds.json",
  )
  config.report.page = "{workdir}/report.html"
  config.report.records = 20_000  # That are measured, drawn at random.
  config.report.gallery = 200  # Of these, how many are shown.
  config.report.thumbnail = 240  # Their longer side, in pixels.
  config.report.price = 0.0  # US dollars an hour and chip; 0: the table's.
  config.report.watts = 0.0  # Of a chip; 0: not known, and no energy is told.
  # Two folders of images that `cc-jax evaluate` made of evaluate.prompts.
  config.report.pairwise = ("", "")
  config.report.names = ("", "")  # Of the two models; "" for their folders.
  config.report.pairs = 200  # That a voter sees; 0 for all.
  config.report.key = "{workdir}/pairwise.key.json"  # Not for voters.

  config.votes = ConfigDict()
  config.votes.key = "{workdir}/pairwise.key.json"
  config.votes.files = ("{workdir}/votes",)  # Files, or folders of them.
  config.votes.result = "{workdir}/votes.json"

  config.bench = ConfigDict()
  config.bench.loader_seconds = 3.0  # 0 leaves the loader out.
  # Records a second that are asked of it: 4 times what 4 chips of v4 take at 45
  # % of their peak, with 0.543 TFLOP a record. 0 for no such measurement.
  config.bench.loader_rate = 3650.0
  config.bench.steps = 20  # 0 leaves the train step out.
  config.bench.networks = ()  # Of "unet", "vae" and "text": each by itself.
  config.bench.compare = ""  # Or "torch": the same weights there, in turn.
  config.bench.channels_last = False  # Of torch's maps, in a train step;
  config.bench.torch_compile = False  # and whether it compiles its network.
  config.bench.size = 256  # Pixels a side that networks are given.
  config.bench.batch_size = 1
  config.bench.repeats = 5  # Figures are medians of so many.
  config.bench.caption = ConfigDict()  # Random images and weights.
  config.bench.caption.captioner = ""  # "blip2" or "llava"; "" leaves it out.
  config.bench.caption.width = 256  # Of all its networks.
  config.bench.caption.vision_depth = 6
  config.bench.caption.text_depth = 4
  config.bench.caption.size = 224  # Pixels a side.
  config.bench.caption.batch_size = 16
  config.bench.caption.tokens = 20  # Of each caption, none more and none less.
  config.bench.caption.decoding = "greedy"  # Or "beam", "nucleus".
  config.bench.caption.beams = 5
  config.bench.caption.dtype = "float32"
  config.bench.prior = ConfigDict(dict(batch_size=0))  # CLIP-GEN's; 0: none.
  config.bench.prior.update(vocabulary=1024, positions=256)
  config.bench.prior.update(width=256, depth=6, heads=4)
  config.bench.result = "{workdir}/bench.json"

  config.export = ConfigDict()
  config.export.folder = "{workdir}/export"
  config.export.network = ""  # Instead of a checkpoint: a row, folder or file,
  config.export.kind = ""  # and which of models/kinds.py it is.
  config.export.part = "ema"  # Or "params".
  config.export.dtype = "float32"  # Or "bfloat16", "float16".
  config.export.licence = ""  # Of the weights, a name that the hub knows.
  config.export.datasets = ()  # Of the hub, for the model card.
  config.export.check = False  # Compares an image with one of diffusers'.
  config.export.push = ""  # A repository of the hub, "user/name".
  config.export.private = True  # Where it is made by pushing.
  return config
