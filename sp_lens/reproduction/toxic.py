from sp_lens.reproduction.setting import Setting
from sp_lens.reproduction.writing import Found


def toxic(setting: Setting) -> Found:
    raise NotImplementedError
