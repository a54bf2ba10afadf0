"""Graphs of `--filter`: what is refused, what ffmpeg is given, and what its own list says about the allowed filters."""

from __future__ import annotations

import re
import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_cli.errors import InputError
from helios_cli.film.filters import (
    ALLOWED,
    ALLOWED_OPTIONS,
    GROUPS,
    REFUSED_OPTIONS,
    FrameFormat,
    check_graph,
    require_even,
    try_graph,
)

README = Path(__file__).resolve().parents[2] / "README.md"
FILM = FrameFormat((64, 48), Fraction(24))

DANGEROUS = [
    # sources that read files, devices or the network, or have no end
    *("movie=a.mp4", "amovie=a.mp4", "movie=http://example.org/a.mp4"),
    *("hflip;movie=a.mp4", "movie=a.mp4[b];[in][b]overlay"),
    *("color=red", "testsrc", "nullsrc", "life=filename=/etc/passwd", "cellauto=f=/etc/passwd", "frei0r=distort0r"),
    *("frei0r_src=10x10", "lavfi=color", "ladspa=f=x", "lv2=p=x", "haldclutsrc", "buffer", "null,nullsink"),
    # files that are read or written
    *("lut3d=file=a.cube", "lut3d=a.cube", "lut1d=a.cube", "haldclut"),
    *("subtitles=a.srt", "ass=a.ass", "nnedi=weights=a"),
    *("metadata=print:file=/tmp/a", "metadata=mode=print", "psnr=stats_file=a", "ssim=f=a", "libvmaf=log_path=a"),
    *("libvmaf", "xpsnr=f=a", "vmafmotion=stats_file=a", "siti"),
    *("signalstats", "removelogo=a.png", "find_rect=a.png"),
    *("cover_rect=a.jpg", "vidstabdetect=result=a", "vidstabtransform=input=a"),
    *("signature=filename=a", "fieldhint=a"),
    *("dnn_processing=model=a", "derain=model=a", "sr=model=a"),
    *("ocr=datapath=a", "qrencode=textfile=a", "program_opencl=source=a"),
    *("libplacebo=custom_shader_path=a", "bench", "graphmonitor", "showinfo"),
    *("perms", "segment", "streamselect", "whisper"),
    *("curves=psfile=a.acv", "curves=plot=a", "curves=vintage:plot=a"),
    *("selectivecolor=psfile=a", "deshake=filename=a"),
    # values by their place, up to that of a file
    *("curves=none:0/0:0/0:0/0:0/0:0/0:a.acv", "deshake=1:2:3:4:5:6:7:8:9:a", "selectivecolor=0:a:b"),
    # text from files
    *("drawtext=textfile=/etc/passwd", "drawtext=fontfile=a.ttf:text=a"),
    *("drawtext=a.ttf", "drawtext=font=a:text=a"),
    *("drawtext=text=a:textfile=/etc/passwd", "drawtext=text_source=side_data_detection_bboxes"),
    *("drawtext=text=a:reload=1",),
    # an option whose value ffmpeg reads from a file
    *("drawtext=/text=/etc/passwd", "drawtext=text=a:/text=/etc/passwd"),
    *("hqdn3d=/luma_spatial=a", "eq=/contrast=a"),
    # commands, the network, time
    *("sendcmd=c='0 eq contrast 1'", "sendcmd=f=a", "zmq", "azmq", "zmq=b=tcp://*:5555", "asendcmd"),
    *("setpts=2*PTS", "trim=0:1", "loop=-1", "reverse"),
    *("select=0", "tpad=stop=9", "fps=24:start_time=9", "fps=fps=24:start_time=1"),
    *("mpdecimate", "decimate", "freezeframes", "random", "shuffleframes"),
    *("realtime", "cue", "settb=1", "interleave", "zoompan"),
    # hardware, sound
    *("hwupload", "scale_vaapi", "gblur_vulkan", "avgblur_opencl", "volume=2", "showwaves", "aeval=0", "anullsrc"),
    # names in pieces, instances, upper case, prefixes, spaces
    *("mo'vi'e=a", "'movie'=a", "'movie=a'", " movie =a"),
    *("movie@hflip=a", "hflip@movie,movie@x=a", "MOVIE=a", "Movie=a"),
    *("hflip,movie=a", "hflip[a];[a]movie=a", "hflip\nmovie=a", "hflip,\n\tmovie=a", "sws_flags=bicubic;hflip"),
    # quotes that ffmpeg removes before it divides options
    *("drawtext='text=a:textfile=/etc/passwd'", "drawtext=text='a:textfile=/etc/passwd'"),
    *("drawtext=text=a':'textfile=b",),
    *("curves='vintage:plot=a'", "geq=lum='0:cb=0,movie=a'x,movie=a", "eq='contrast=1,movie=a',movie=b"),
    # escapes
    *(r"drawtext=text=a\:textfile=b", r"drawtext=text='a\:b'", r"mov\ie=a"),
    *(r"hflip\,movie=a", r"eq=contrast=1\\\,movie=a"),
    *("geq=lum='while(1,0)'", "hue=h='while (1, 0)'", "hflip\0,movie=a"),
    *("hflip\x1b[2J", "hflip\x7f", "hflip\u0085"),
]  # fmt: skip


@pytest.mark.parametrize("graph", DANGEROUS)
def test_what_is_dangerous_is_refused_without_asking_ffmpeg(graph):
    with pytest.raises(InputError, match=r"^--filter: "):
        check_graph(graph)


@pytest.mark.parametrize(
    "graph",
    [
        *("", " ", ",", ";", "hflip,", "hflip;", ",hflip", "hflip;;vflip", "[a", "a]", "[a]", "[]hflip", "[a b]hflip"),
        *("eq='contrast=1", "hflip[a]", "hflip]", "split[a][b]", "hflip[a][b]", "hflip " * 9, "[a]'hflip", "hflip'"),
        *("," * 5000, "hflip," * 60 + "hflip", "eq==1", "eq= =1", "eq=a b=1", "@a", "hflip[out][out]"),
    ],
)
def test_what_cannot_be_read_is_an_error(graph):
    with pytest.raises(InputError, match=r"^--filter: "):
        check_graph(graph)


@given(
    st.lists(
        st.sampled_from([*"\\':;,=[]@/ \n", "movie", "hflip", "eq", "a", "drawtext", "textfile", "1"]), max_size=14
    )
)
def test_whatever_is_accepted_names_allowed_filters_and_options_alone(pieces):
    try:
        graph = check_graph("".join(pieces))
    except InputError:
        return
    # Taken apart in another way: the text for ffmpeg has quotes around options, and nothing special outside.
    bare = re.sub(r"='[^']*'", "", graph)
    names = re.split("[,;]", re.sub(r"\[\w+\]", "", bare))
    assert set(names) <= ALLOWED and "\\" not in graph and "/" not in bare
    for name, options in re.findall(r"(\w+)='([^']*)'", graph):
        keys = {option.partition("=")[0] for option in options.split(":") if "=" in option}
        assert not keys & REFUSED_OPTIONS.get(name, set())
        assert keys <= ALLOWED_OPTIONS.get(name, keys) and all(re.fullmatch(r"\w+", key) for key in keys)


@pytest.mark.parametrize(
    ("graph", "written"),
    [
        ("hqdn3d , unsharp=5:5", "hqdn3d,unsharp='5:5'"),
        ("eq=contrast='1+0.2*sin(t)' : saturation = 1.2", "eq='contrast=1+0.2*sin(t):saturation=1.2'"),
        ("[in]hflip[out]", "[in]hflip"),
        ("hqdn3d@first=3", "hqdn3d='3'"),
        ("split[a][b];\n[a] gblur=3 [c];[b][c] blend=and", "split[a][b];[a]gblur='3'[c];[b][c]blend='and'"),
        ("hflip=,hflip@", "hflip,hflip"),
        ("drawtext=text='one, two; [three]':x=1", "drawtext='text=one, two; [three]:x=1'"),
        ("curves=vintage", "curves='vintage'"),
    ],
)
def test_a_graph_is_written_anew(graph, written):
    assert check_graph(graph) == written
    assert check_graph(written) == written


def named(message: str) -> pytest.RaisesContext:
    return pytest.raises(InputError, match=message)


def test_errors_say_what_to_write():
    with named("'hqdn' is not among the filters") as caught:
        check_graph("hqdn")
    assert "hqdn3d" in caught.value.hint
    with named("drawtext: the option textfile") as caught:
        check_graph("drawtext=textfile=a")
    assert "fontsize" in caught.value.hint


# Against ffmpeg


def ffmpeg_s(*question: str) -> str:
    return subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *question], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    """This ffmpeg's filters, each with its inputs and outputs, such as VV->V."""
    lines = (line.split() for line in ffmpeg_s("-filters").splitlines())
    return {words[1]: words[2] for words in lines if len(words) > 3 and "->" in words[2]}


def test_allowed_filters_are_those_of_ffmpeg_that_take_and_give_pictures(known):
    assert len(ALLOWED) == sum(len(names.split()) for names in GROUPS.values())
    missing = {name for name in ALLOWED if name not in known}
    assert len(missing) < 10, missing  # a build may leave some out; a misspelled one would hide there: they are shown
    for name in ALLOWED - missing:
        assert re.fullmatch("(V+|N)->[VN]", known[name]), name


@pytest.mark.slow
def test_no_allowed_filter_has_an_option_that_names_a_file_or_takes_commands(known):
    telling = re.compile(
        r"\b(file|filename|path|url|socket|address|log|model|shader|plugin|script|command|library)\b", re.I
    )
    for name in ALLOWED & known.keys():
        for option, kind, what in re.findall(r"^ +(\w+) +<(\w+)> +\S+ (.*)$", ffmpeg_s("-h", f"filter={name}"), re.M):
            is_refused = option in REFUSED_OPTIONS.get(name, ()) or option not in ALLOWED_OPTIONS.get(name, {option})
            suspicious = kind in ("string", "dictionary", "binary") and telling.search(f"{option} {what}")
            assert is_refused or not suspicious, f"{name}: {option} {what}"


@pytest.mark.parametrize(
    ("graph", "size", "rate"),
    [
        ("hflip", (64, 48), 24),
        ("scale=iw*2:-2", (128, 96), 24),
        ("crop=w=33", (33, 48), 24),  # as of RGB, which has no pairs of columns
        ("fps=30000/1001", (64, 48), Fraction(30000, 1001)),
        ("minterpolate=fps=48", (64, 48), 48),
        ("framestep=2,transpose", (48, 64), 12),
        ("split[a][b];[a]gblur=3[c];[b][c]blend=all_mode=screen", (64, 48), 24),
        ("split,hstack", (128, 48), 24),
        ("tblend=all_mode=average", (64, 48), 24),
    ],
)
def test_a_trial_gives_the_size_and_rate_that_come_out(graph, size, rate):
    assert try_graph(check_graph(graph), FILM) == FrameFormat(size, Fraction(rate))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("hqdn3d=foo=2", "Option not found"),
        ("hqdn3d=abc", "Undefined constant"),
        ("crop=700:10", "too big or non positive size for width '700'"),
        ("scale=99999:99999", "99999"),
        ("overlay", "2 input"),
        ("split[a][b];[a]gblur", r"2 output"),
        ("scale=20000:20", "at most 36 megapixels"),
        ("fps=2000", "1 to 1000 frames per second"),
    ],
)
def test_a_trial_finds_what_ffmpeg_does_not_take(graph, message):
    with named(message) as caught:
        try_graph(check_graph(graph), FILM)
    assert " @ 0x" not in caught.value.message


@pytest.mark.slow
def test_a_trial_has_a_limit_of_memory():
    with named("take more than 4 GiB of memory"):
        try_graph(check_graph("xbr=4,xbr=4,xbr=4"), FrameFormat((320, 192), Fraction(24)))


def test_an_mp4_is_even():
    require_even(FILM, "--filter")
    with named("makes 33x48, but an .mp4 needs even sizes") as caught:
        require_even(FrameFormat((33, 48), Fraction(24)), "--filter")
    assert "scale=34:48" in caught.value.hint


def test_the_readme_lists_the_filters_that_are_taken():
    rows = re.findall(r"^\| ([a-z ]+) \| (`[a-z0-9` ]+`) \|$", README.read_text(encoding="utf-8"), re.M)
    listed = {group: re.sub("`", "", names) for group, names in rows}
    assert {group: listed.get(group) for group in GROUPS} == GROUPS
