#!/usr/bin/env bash
# Pocket Wan on four GPUs, in three steps of under ten minutes:   zoo/on_four_gpus.sh STEP STATE OUT
#
#   1  three VAEs, of which the best is taken, and beside one of them all stages in little, to see that they run
#   2  text-to-video and the text encoder, on all four GPUs
#   3  image-to-video on two, the VAE's decoder on the others; then pictures of all
#
# STATE: a folder that stays from step to step. Needs 64 cores and 80 GB of memory. OUT gets what is worth keeping.
# MORE: further options of `python -m zoo` for all of them, which come last and so count. PYTHON: another interpreter.
# A step that cannot be recorded as a CUDA graph, or not be shared among GPUs, is run without.
set -u
step=$1 state=$2 out=$3
more=${MORE:-} python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
mkdir -p "$state" "$out"

alone() {  # GPU STAGE WORDS…
    local gpu=$1; shift
    # shellcheck disable=SC2086
    CUDA_VISIBLE_DEVICES=$gpu $python -m zoo "$@" $more
}

together() {  # GPUS PORT STAGE WORDS…
    local gpus=$1 port=$2 count; shift 2
    count=$(tr ',' '\n' <<<"$gpus" | wc -l)
    # shellcheck disable=SC2086
    CUDA_VISIBLE_DEVICES=$gpus $python -m torch.distributed.run --nproc_per_node "$count" \
        --master_addr 127.0.0.1 --master_port "$port" -m zoo "$@" $more
}

best() {  # the folder of the VAE with the most dB
    for folder in "$state"/vae?; do
        echo "$(grep -h 'saved;' "$folder/log" | tail -1 | grep -o '[0-9.]* dB' | cut -d' ' -f1) $folder"
    done | sort -n | tail -1 | cut -d' ' -f2
}

keep() {  # FOLDER: its models and what they made; all logs and pictures in one file
    find "$1" -maxdepth 1 \( -name 'pocket_*' -o -name 'made.*' \) -exec cp {} "$out/" \;
    tar czf "$out/pictures_and_logs.tgz" -C "$state" $(cd "$state" && ls -d ./*/log ./*/*.png)
}

case $step in
1)
    mkdir -p "$state"/vae{0,1,2} "$state/small"
    { alone 0 vae --out "$state/vae0" --vae_minutes 8.8 --vae_compiled all ||
        alone 0 vae --out "$state/vae0" --vae_minutes 7.5 --not_recorded; } >"$state/vae0/log" 2>&1 &
    { alone 1 vae --out "$state/vae1" --vae_minutes 8.8 --vae_widths 32,48,56,48 --vae_batch 4 ||
        alone 1 vae --out "$state/vae1" --vae_minutes 7.5 --vae_widths 32,48,56,48 --not_recorded; } \
        >"$state/vae1/log" 2>&1 &
    together 2,3 29510 vae --out "$state/vae2" --vae_minutes 8.8 --vae_batch 4 >"$state/vae2/log" 2>&1 &
    alone 1 all --out "$state/small" --clips 4000 --vae_clips 4000 --workers 4 --judged 16 --vae_minutes 0.3 \
        --dit_minutes 0.5 --i2v_minutes 0.3 >"$state/small/log" 2>&1 &
    wait
    tail -n 4 "$state"/*/log
    echo "best: $(best)"
    keep "$(best)"
    ;;
2)
    mkdir -p "$state/t2v"
    words=(dit --start_from "$(best)" --out "$state/t2v" --clips 160000 --dit_minutes 7.4)
    { together 0,1,2,3 29520 "${words[@]}" || alone 0 "${words[@]}" --dit_minutes 6; } 2>&1 | tee "$state/t2v/log"
    alone 0 show --out "$state/t2v" --guidance 2,4,6 2>&1 | tee -a "$state/t2v/log"
    keep "$state/t2v"
    ;;
3)
    mkdir -p "$state/i2v" "$state/decoder" "$state/done"
    { together 0,1 29530 i2v --start_from "$state/t2v" --out "$state/i2v" --clips 80000 --i2v_minutes 7 ||
        alone 0 i2v --start_from "$state/t2v" --out "$state/i2v" --clips 80000 --i2v_minutes 6; } \
        >"$state/i2v/log" 2>&1 &
    { together 2,3 29540 decoder --start_from "$state/t2v" --out "$state/decoder" --vae_batch 4 --vae_rate 2e-3 \
        --decoder_minutes 7.8 || alone 2 decoder --start_from "$state/t2v" --out "$state/decoder" --vae_rate 2e-3 \
        --decoder_minutes 6; } >"$state/decoder/log" 2>&1 &
    wait
    tail -n 4 "$state/i2v/log" "$state/decoder/log"
    cp "$state"/t2v/pocket_wan_t*.safetensors "$state"/i2v/pocket_wan_i2v.safetensors \
        "$state"/decoder/pocket_wan_vae.safetensors "$state/done/"
    alone 0 show --out "$state/done" --guidance 2,4,6 2>&1 | tee "$state/done/log"
    keep "$state/done"
    ;;
*)
    echo "STEP is 1, 2 or 3." >&2
    exit 2
    ;;
esac
