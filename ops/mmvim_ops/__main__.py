"""``python -m mmvim_ops``: what the ops run on here, and why the rest cannot."""

from __future__ import annotations

from mmvim_ops import available_backends, build_info


def main() -> None:
    """Print the build, and one line per backend."""
    for key, value in build_info().items():
        print(f'{key:<15} {"none" if value is None else value}')
    print()
    print(f'{"backend":<15} {"runs here":<10} note')
    for name, status in available_backends().items():
        note = status.note.replace('\n', '\n' + ' ' * 27)
        print(f'{name:<15} {"yes" if status.available else "no":<10} {note}')


if __name__ == '__main__':
    main()
