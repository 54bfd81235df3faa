"""What refers to other files and addresses: playlists under every name, and names that are no paths for us."""

import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.robustness.elsewhere import Elsewhere
from tests.robustness.inputs import ANY, EXACT, FILE_WAYS, PLACE_WAYS, REFUSED, Input, Made
from tests.robustness.sounds import encoded

KIND = "references"
HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n"
# {file}: with its path; {url}: with file://; {address}: with http://; {name}: relative; {port}: a number.
SCRIPTS = {
    "m3u": "{file}.wav\n",
    "m3u8 with a map": HLS + '#EXT-X-MAP:URI="{file}.m4a"\n#EXTINF:10,\n{file}.m4s\n#EXT-X-ENDLIST\n',
    "m3u8 with a key": HLS + '#EXT-X-KEY:METHOD=AES-128,URI="{file}.wav"\n#EXTINF:10,\n{file}.ts\n#EXT-X-ENDLIST\n',
    "m3u8 of variants": '#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1,CODECS="mp4a.40.2"\n{file}.ts\n',
    "m3u8 of renditions": '#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="{file}.aac"\n'
    '#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO="a"\n{file}.ts\n',
    "m3u8 with data": HLS + "#EXTINF:10,\ndata:audio/aac;base64,AAAA\n#EXT-X-ENDLIST\n",
    "m3u8 with concat": HLS + "#EXTINF:10,\nconcat:{file}.ts|{file}.ts\n#EXT-X-ENDLIST\n",
    "m3u8 with subfile": HLS + "#EXTINF:10,\nsubfile,,start,0,end,9999,,:{file}.ts\n#EXT-X-ENDLIST\n",
    "m3u8 without an end": HLS + "#EXTINF:10,\n{file}.ts\n",
    "ffconcat": "ffconcat version 1.0\nfile '{file}.wav'\n",
    "ffconcat with an option": "ffconcat version 1.0\nfile '{file}.wav'\noption safe 0\n",
    "ffconcat by url": "ffconcat version 1.0\nfile '{url}.wav'\n",
    "ffconcat by http": "ffconcat version 1.0\nfile '{address}.wav'\n",
    "ffconcat, relative": "ffconcat version 1.0\nfile '{name}.wav'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 97\n"
    "a=rtpmap:97 opus/48000/2\n",
    "pls": "[playlist]\nFile1={file}.wav\nNumberOfEntries=1\nVersion=2\n",
    "xspf": '<?xml version="1.0"?><playlist version="1" xmlns="http://xspf.org/ns/0/"><trackList><track>'
    "<location>{url}.wav</location></track></trackList></playlist>",
    "asx": '<asx version="3.0"><entry><ref href="{url}.wma"/></entry></asx>',
    "asf reference": "[Reference]\nRef1={address}.wma\n",
    "smil": '<smil><body><audio src="{url}.wav"/></body></smil>',
    "cue": 'FILE "{file}.wav" WAVE\n  TRACK 01 AUDIO\n    INDEX 01 00:00:00\n',
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="audio/mp4"><Representation id="0" '
    'bandwidth="1"><BaseURL>{url}.m4a</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "dash with an entity": '<?xml version="1.0"?><!DOCTYPE m [<!ENTITY x SYSTEM "{url}.wav">]>'
    '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>&x;</Period></MPD>',
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
    "<Id>urn:uuid:0</Id></CompositionPlaylist>",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}.wav"/></svg>',
    "html": '<html><body><audio src="{url}.wav"></audio></body></html>',
    "avisynth": 'DirectShowSource("{file}.wav")\n',
    "filter graph": "amovie={file}.wav\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\n{file}.wav\n",
    "ass": "[Script Info]\nAudio URI: {file}.wav\n[Events]\n",
    "webvtt": "WEBVTT\n\n00:00.000 --> 00:01.000\n{file}.wav\n",
    "sami": '<SAMI><BODY><SYNC Start=0><P>{file}.wav</BODY></SAMI>',
    "desktop link": "[InternetShortcut]\nURL={url}.wav\n",
    "vobsub": "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\ntimestamp: 0, filepos: 0\n",
    "rtsp reference": "rtsptextRTSP://127.0.0.1:{port}/secret\n",
    "git lfs": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}  # fmt: skip
# Names that FFmpeg, opened by name, would take for more than the name of a file.
NAMES = [
    "concat:{file}.wav",
    "concat:{file}.aac|{file}.aac",
    "file:{file}.wav",
    "file://{file}.wav",
    "subfile,,start,0,end,99999,,:{file}.wav",
    "async:{file}.wav",
    "cache:{file}.wav",
    "crypto:{file}.wav",
    "hls+file://{file}.wav",
    "applehttp+{address}.aac",
    "mmsh://127.0.0.1:{port}/secret",
    "ftp://127.0.0.1:{port}/secret.wav",
    "tcp://127.0.0.1:{port}",
    "udp://127.0.0.1:{port}",
    "rtmp://127.0.0.1:{port}/secret",
    "rtsp://127.0.0.1:{port}/secret",
    "icecast://127.0.0.1:{port}/secret",
    "unix:{file}.wav",
    "pipe:0",
    "fd:0",
    "-",
    "data:audio/wav;base64,UklGRg==",
    "lavfi:sine",
    "sine=frequency=440",
    "hw:0",
    "default",
    "{file}%d.wav",
    "secre?.wav",
    "HTTP://127.0.0.1:{port}/secret.wav",
    "https:/127.0.0.1:{port}/secret.wav",
]
URLS = {  # below our address
    "song.flac": EXACT,
    "broken-off.flac": REFUSED,
    "playlist.wav": REFUSED,
    "to-file.wav": REFUSED,
    "in-circles.wav": REFUSED,
    "missing.wav": REFUSED,
}
# Of addresses that are wrong themselves.
WRONG_URLS = ["http://", "http://[", "http://127.0.0.1:1/x.wav", "http://127.0.0.1:99999/x.wav", "http:///x.wav"]
WRONG_URLS += ["http://\x00/", "http://127.0.0.1:x/", "https://127.0.0.1:{port}/secret.wav", "http://" + "a" * 5000]


def inputs() -> Iterator[Input]:
    for target in ("file", "name", "url", "address"):
        for segment in ("aac", "ts"):
            for suffix in ("m3u8", "wav", "mp3"):
                script = HLS + f"#EXTINF:10,\n{{{target}}}.{segment}\n#EXT-X-ENDLIST\n"
                name = f"m3u8 to a {segment} by {target}, called .{suffix}"
                yield script_input(name, script, suffix, fast=target == "file" and segment == "ts")
    for name, script in SCRIPTS.items():
        suffix = name.split()[0].rstrip(",")
        yield script_input(f"{name}, called .{suffix}", script, suffix)
        yield script_input(f"{name}, called .wav", script, "wav", fast=name == "ffconcat")
    for name in NAMES:
        yield Input(f"name {name}", KIND, REFUSED, PLACE_WAYS, partial(make_name, name), fast="concat" in name)
    for name, expected in URLS.items():
        make = partial(make_url, name)
        yield Input(f"URL of {name}", "URLs", expected, ("path",), make)
        yield Input(f"URL of {name} for the command line", "URLs", REFUSED, ("command",), make)
    for number, url in enumerate(WRONG_URLS):
        yield Input(f"wrong URL {number}", "URLs", REFUSED, PLACE_WAYS, partial(make_name, url))
    for name, flags, kind in (("alias", 0, b"alis"), ("address", 0, b"url "), ("address of itself", 1, b"url ")):
        make = partial(make_file, partial(external_mov, flags, kind), "song.mov")
        yield Input(f"mov with its sound elsewhere, {name}", KIND, ANY, FILE_WAYS, make)
    for pattern in ("secret%d.wav", "secret%03d.wav", "secret*.wav", "secret[a-z].wav", "secret{wav,flac}"):
        make = partial(make_file, lambda elsewhere: encoded("wav16").content, pattern)
        yield Input(f"wav called {pattern}", "names", EXACT, FILE_WAYS, make)
    for suffix in ("m3u8", "ffconcat", "sdp", "mpd", "txt", "png", "jpg", "srt", "raw", "pcm", "ts"):
        make = partial(make_file, lambda elsewhere: encoded("wav16").content, f"song.{suffix}")
        yield Input(f"wav called .{suffix}", "names", EXACT, FILE_WAYS, make)


def script_input(name: str, script: str, suffix: str, fast: bool = False) -> Input:
    return Input(name, KIND, REFUSED, FILE_WAYS, partial(make_script, script, suffix), fast)


def filled(text: str, folder: Path, elsewhere: Elsewhere) -> str:
    secret = elsewhere.folder / "secret"
    targets = {
        "{file}": str(secret),
        "{name}": os.path.relpath(secret, folder),
        "{url}": f"file://{secret}",
        "{address}": f"{elsewhere.address}/secret",
        "{port}": str(elsewhere.port),
    }
    for mark, target in targets.items():
        text = text.replace(mark, target)
    return text


def make_script(script: str, suffix: str, folder: Path, elsewhere: Elsewhere) -> Made:
    path = folder / f"list.{suffix}"
    path.write_text(filled(script, folder, elsewhere))
    return Made(path)


def make_name(name: str, folder: Path, elsewhere: Elsewhere) -> Made:
    return Made(filled(name, folder, elsewhere))


def make_url(name: str, folder: Path, elsewhere: Elsewhere) -> Made:
    song = encoded("flac")
    return Made(f"{elsewhere.address}/{name}", song.reference, song.rate)


def make_file(content: Callable[[Elsewhere], bytes], name: str, folder: Path, elsewhere: Elsewhere) -> Made:
    (folder / name).write_bytes(content(elsewhere))
    song = encoded("wav16")
    return Made(folder / name, song.reference, song.rate)


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def external_mov(flags: int, kind: bytes, elsewhere: Elsewhere) -> bytes:
    """The song as mov, whose header says that its samples lie in another file."""
    content = encoded("mov-pcm").content
    target = f"{elsewhere.folder}/secret.wav".encode()
    if kind == b"alis":
        # FFmpeg takes the path of tag 18 (a Unix path), relative to the levels that stand before it.
        entry = bytes(146) + struct.pack(">HH", 18, len(target)) + target + struct.pack(">hH", -1, 0)
        entry = struct.pack(">IH", 0, len(entry) + 6) + entry
    else:
        entry = b"file://" + target + b"\0"
    place = content.index(b"dref") - 4
    old = int.from_bytes(content[place : place + 4], "big")
    new = box(b"dref", bytes(4) + struct.pack(">I", 1) + box(kind, struct.pack(">I", flags) + entry))
    changed = bytearray(content[:place] + new + content[place + old :])
    for around in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        start = changed.rindex(around, 0, place) - 4
        struct.pack_into(">I", changed, start, int.from_bytes(changed[start : start + 4], "big") + len(new) - old)
    return bytes(changed)
